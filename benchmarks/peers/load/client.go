package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	content "github.com/containerd/containerd/api/services/content/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const (
	connectTimeout = 10 * time.Second
	messageBytes   = 1 << 20
	tailBytes      = 32
	namespace      = "bench"
	// The label that keeps a blob from containerd's collector.
	root = "containerd.io/gc.root"
)

// written are the digests of what each socket was brought and not yet told to forget.
var written = map[string][]string{}

var pools = map[string][]*client{}

type client struct {
	service content.ContentClient
	rpcs    int64
	bytes   int64
	written []string
}

// connected has n clients of the socket, each on a connection that is up.
func connected(socket string, n int) ([]*client, error) {
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
	defer cancel()
	for len(pools[socket]) < n {
		connection, err := grpc.NewClient(
			"unix:"+socket,
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithUnaryInterceptor(func(
				ctx context.Context, method string, request, reply any, connection *grpc.ClientConn, invoke grpc.UnaryInvoker,
				options ...grpc.CallOption,
			) error {
				return invoke(namespaced(ctx), method, request, reply, connection, options...)
			}),
			grpc.WithStreamInterceptor(func(
				ctx context.Context, desc *grpc.StreamDesc, connection *grpc.ClientConn, method string, stream grpc.Streamer,
				options ...grpc.CallOption,
			) (grpc.ClientStream, error) {
				return stream(namespaced(ctx), desc, connection, method, options...)
			}),
		)
		if err != nil {
			return nil, err
		}
		connection.Connect()
		for state := connection.GetState(); state != connectivity.Ready; state = connection.GetState() {
			if !connection.WaitForStateChange(ctx, state) {
				return nil, fmt.Errorf("no connection to %s: %w", socket, ctx.Err())
			}
		}
		pools[socket] = append(pools[socket], &client{service: content.NewContentClient(connection)})
	}
	return pools[socket][:n], nil
}

// namespaced says the namespace where containerd's clients do.
func namespaced(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "containerd-namespace", namespace)
}

// write brings a new blob as containerd's own client does: the stream is opened by asking how far it is, each message is
// answered before the next one goes, the commit names size and digest. It counts messages.
func write(number int, on *task) (func(context.Context, *client) error, error) {
	data, err := newBlob(on.Bytes)
	if err != nil {
		return nil, err
	}
	ref := fmt.Sprintf("bench-%d-%s", number, data.digest)
	labels := map[string]string{}
	if on.Labels {
		labels[root] = "bench"
	}
	return func(ctx context.Context, c *client) error {
		stream, err := c.service.Write(ctx)
		if err != nil {
			return err
		}
		say := func(request *content.WriteContentRequest, offset int) error {
			c.rpcs++
			if err := stream.Send(request); err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			answer, err := stream.Recv()
			if err == nil && answer.Offset != int64(offset) {
				err = fmt.Errorf("at %d in place of %d", answer.Offset, offset)
			}
			return err
		}
		open := &content.WriteContentRequest{
			Action: content.WriteAction_STAT, Ref: ref, Total: int64(on.Bytes), Expected: data.digest,
		}
		if err := say(open, 0); err != nil {
			return err
		}
		for at := 0; at < on.Bytes; at += messageBytes {
			end := min(at+messageBytes, on.Bytes)
			message := &content.WriteContentRequest{
				Action: content.WriteAction_WRITE, Offset: int64(at), Data: data.piece(at, end),
			}
			if err := say(message, end); err != nil {
				return err
			}
		}
		commit := &content.WriteContentRequest{
			Action: content.WriteAction_COMMIT, Total: int64(on.Bytes), Offset: int64(on.Bytes), Expected: data.digest,
			Labels: labels,
		}
		if err := say(commit, on.Bytes); err != nil {
			return err
		}
		if err := stream.CloseSend(); err != nil {
			return err
		}
		// containerd's server says its last answer once more.
		for err = nil; err == nil; {
			_, err = stream.Recv()
		}
		if !errors.Is(err, io.EOF) {
			return err
		}
		c.bytes += int64(on.Bytes)
		c.written = append(c.written, data.digest)
		return nil
	}, nil
}

// read takes a blob, or one range of it, the next one for each operation. It counts calls.
func read(number int, on *task) (func(context.Context, *client) error, error) {
	request := &content.ReadContentRequest{Digest: on.Digest}
	wanted := on.Size
	if on.Bytes > 0 {
		wanted = int64(on.Bytes)
		request.Offset, request.Size = int64(number)*wanted%(on.Size-wanted+1), wanted
	}
	return func(ctx context.Context, c *client) error {
		c.rpcs++
		stream, err := c.service.Read(ctx, request)
		if err != nil {
			return err
		}
		var got int64
		for {
			answer, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
			got += int64(len(answer.Data))
		}
		if got != wanted {
			return fmt.Errorf("%d bytes in place of %d", got, wanted)
		}
		c.bytes += got
		return nil
	}, nil
}

// info asks for one blob. It counts calls.
func info(_ int, on *task) (func(context.Context, *client) error, error) {
	request := &content.InfoRequest{Digest: on.Digest}
	return func(ctx context.Context, c *client) error {
		c.rpcs++
		answer, err := c.service.Info(ctx, request)
		if err == nil && answer.Info.Size != on.Size {
			err = fmt.Errorf("%d bytes in place of %d", answer.Info.Size, on.Size)
		}
		return err
	}, nil
}

// forget deletes what was written.
func (c *client) forget(socket string) error {
	for _, digest := range written[socket] {
		_, err := c.service.Delete(context.Background(), &content.DeleteContentRequest{Digest: digest})
		if err != nil && status.Code(err) != codes.NotFound {
			return err
		}
	}
	delete(written, socket)
	return nil
}

// blob is `start` of a buffer that all blobs of its size have, and an end of its own: its digest costs no second pass.
type blob struct {
	start  []byte
	tail   []byte
	digest string
}

type beginning struct {
	data []byte
	hash []byte
}

var beginnings = map[int]beginning{}

func newBlob(size int) (*blob, error) {
	if size < tailBytes {
		return nil, fmt.Errorf("a blob of %d bytes is too small to be one of its kind", size)
	}
	start, known := beginnings[size]
	if !known {
		start.data = make([]byte, size-tailBytes)
		if _, err := rand.Read(start.data); err != nil {
			return nil, err
		}
		hashed := sha256.New()
		hashed.Write(start.data)
		var err error
		if start.hash, err = hashed.(encoding.BinaryMarshaler).MarshalBinary(); err != nil {
			return nil, err
		}
		beginnings[size] = start
	}
	tail := make([]byte, tailBytes)
	if _, err := rand.Read(tail); err != nil {
		return nil, err
	}
	var hashed hash.Hash = sha256.New()
	if err := hashed.(encoding.BinaryUnmarshaler).UnmarshalBinary(start.hash); err != nil {
		return nil, err
	}
	hashed.Write(tail)
	return &blob{start.data, tail, fmt.Sprintf("sha256:%x", hashed.Sum(nil))}, nil
}

// piece is [from, to) of the blob; only what reaches into the tail is copied.
func (b *blob) piece(from, to int) []byte {
	if to <= len(b.start) {
		return b.start[from:to]
	}
	whole := make([]byte, 0, to-from)
	if from < len(b.start) {
		whole = append(whole, b.start[from:]...)
		from = len(b.start)
	}
	return append(whole, b.tail[from-len(b.start):to-len(b.start)]...)
}
