// Clients of a content service, the same for whichever server answers.
//
// It reads one task a line from standard input, in JSON, and answers each with a line of JSON: see task and result. The
// clients of a task share out its operations; each has a connection of its own. What a task needs before it can begin
// (connections, digests of what it writes) is there before the clock starts.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

type task struct {
	Work    string `json:"work"` // a name in works, or "forget"
	Socket  string `json:"socket"`
	Clients int    `json:"clients"`
	Count   int    `json:"count"`  // operations of all clients together
	Bytes   int    `json:"bytes"`  // of each blob that is written, or of each range that is read (0: the whole blob)
	Labels  bool   `json:"labels"` // whether a blob is committed with one
	Keep    bool   `json:"keep"`   // whether "forget" leaves what is written
	Digest  string `json:"digest"` // of the blob that is read
	Size    int64  `json:"size"`   // of that blob
}

type result struct {
	Wall      float64  `json:"wall"`      // seconds
	Latencies []int64  `json:"latencies"` // nanoseconds of each operation, in no order
	RPCs      int64    `json:"rpcs"`      // calls and messages sent, see each work
	Bytes     int64    `json:"bytes"`     // of blobs, read or written
	Digests   []string `json:"digests"`   // of what was written
	Error     string   `json:"error,omitempty"`
}

// A work is prepared for each operation before the clock starts, and then done by one of the clients.
type work func(number int, on *task) (func(context.Context, *client) error, error)

var works = map[string]work{"write": write, "read": read, "info": info}

func main() {
	out := json.NewEncoder(os.Stdout)
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var given task
		answer := &result{}
		err := json.Unmarshal(lines.Bytes(), &given)
		if err == nil {
			answer, err = run(&given)
		}
		if err != nil {
			answer = &result{Error: err.Error()}
		}
		if err := out.Encode(answer); err != nil {
			panic(err)
		}
	}
}

func run(given *task) (*result, error) {
	clients, err := connected(given.Socket, given.Clients)
	if err != nil {
		return nil, err
	}
	if given.Work == "forget" {
		return &result{}, clients[0].forget(given.Socket)
	}
	prepare, known := works[given.Work]
	if !known {
		return nil, fmt.Errorf("unknown work %q", given.Work)
	}
	operations := make([]func(context.Context, *client) error, given.Count)
	for number := range operations {
		if operations[number], err = prepare(number, given); err != nil {
			return nil, err
		}
	}

	var next atomic.Int64
	var group sync.WaitGroup
	ctx, cancel := context.WithCancelCause(context.Background())
	latencies := make([][]int64, len(clients))
	start := time.Now()
	for index, each := range clients {
		each.rpcs, each.bytes, each.written = 0, 0, nil
		group.Go(func() {
			for ctx.Err() == nil {
				number := int(next.Add(1)) - 1
				if number >= len(operations) {
					return
				}
				begun := time.Now()
				if err := operations[number](ctx, each); err != nil {
					cancel(fmt.Errorf("operation %d of %q: %w", number, given.Work, err))
					return
				}
				latencies[index] = append(latencies[index], int64(time.Since(begun)))
			}
		})
	}
	group.Wait()
	answer := &result{Wall: time.Since(start).Seconds(), Latencies: slices.Concat(latencies...)}
	err = context.Cause(ctx)
	cancel(nil)
	for _, each := range clients {
		answer.RPCs += each.rpcs
		answer.Bytes += each.bytes
		answer.Digests = append(answer.Digests, each.written...)
	}
	if !given.Keep {
		written[given.Socket] = append(written[given.Socket], answer.Digests...)
	}
	return answer, err
}
