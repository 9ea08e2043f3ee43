// The Go side of the comparison: the library calls that containerd and BuildKit make for the same work.
//
// It reads one task a line from standard input ("sha256 FILE", "inflate FILE", "get URL", "pull URL DIR",
// "convert FROM TO FILE OUT", "unpack FROM FILE") and answers each with one line of JSON: bytes, wall seconds and CPU
// seconds of that task alone, and the size of what it stored.
//
// The standard library does it, and klauspost's modules for zstd and, in a row of its own, for gzip. containerd and
// BuildKit run the igzip or unpigz program instead when one is on PATH; these library calls never do.
package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// One mebibyte, as content stores use; Go's own default of 32 KiB would make the peer slower than it has to be.
const bufferBytes = 1 << 20

type result struct {
	Bytes int64   `json:"bytes"`
	Size  int64   `json:"size"`
	Wall  float64 `json:"wall"`
	CPU   float64 `json:"cpu"`
	Error string  `json:"error,omitempty"`
}

func cpuSeconds() float64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	seconds := func(t syscall.Timeval) float64 { return float64(t.Sec) + float64(t.Usec)/1e6 }
	return seconds(usage.Utime) + seconds(usage.Stime)
}

func main() {
	out := json.NewEncoder(os.Stdout)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		work := prepare(strings.Fields(lines.Text()))
		cpu, start := cpuSeconds(), time.Now()
		n, size, err := work()
		answer := result{Bytes: n, Size: size, Wall: time.Since(start).Seconds(), CPU: cpuSeconds() - cpu}
		if err != nil {
			answer.Error = err.Error()
		}
		if err := out.Encode(answer); err != nil {
			panic(err)
		}
	}
}

// prepare reads what should not be timed and returns the task proper: bytes moved, and bytes stored.
func prepare(words []string) func() (int64, int64, error) {
	nothingStored := func(work func() (int64, error)) func() (int64, int64, error) {
		return func() (int64, int64, error) { n, err := work(); return n, 0, err }
	}
	fail := func(err error) func() (int64, int64, error) {
		return func() (int64, int64, error) { return 0, 0, err }
	}
	switch {
	case len(words) == 2 && (words[0] == "sha256" || words[0] == "inflate"):
		data, err := os.ReadFile(words[1])
		if err != nil {
			return fail(err)
		}
		if words[0] == "sha256" {
			return nothingStored(func() (int64, error) { sha256.Sum256(data); return int64(len(data)), nil })
		}
		return nothingStored(func() (int64, error) {
			reader, err := gzip.NewReader(bytes.NewReader(data))
			if err != nil {
				return 0, err
			}
			return io.CopyBuffer(discard{}, reader, make([]byte, bufferBytes))
		})
	case len(words) == 2 && words[0] == "get":
		return nothingStored(func() (int64, error) { return fetch(words[1], discard{}) })
	case len(words) == 3 && words[0] == "pull":
		return nothingStored(func() (int64, error) { return pull(words[1], words[2]) })
	case len(words) == 5 && words[0] == "convert":
		return func() (int64, int64, error) { return convert(words[1], words[2], words[3], words[4]) }
	case len(words) == 3 && words[0] == "unpack":
		return nothingStored(func() (int64, error) { return unpack(words[1], words[2]) })
	}
	return fail(fmt.Errorf("unknown task %q", words))
}

// discard has no ReadFrom, so that io.CopyBuffer uses the given buffer.
type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

func fetch(url string, to io.Writer) (int64, error) {
	response, err := http.Get(url)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("%s", response.Status)
	}
	return io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{response.Body}, make([]byte, bufferBytes))
}

// pull does what a content store's writer does: hash while writing, sync, rename, sync the directory.
func pull(url, dir string) (int64, error) {
	path := filepath.Join(dir, "ingest")
	file, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	digest := sha256.New()
	n, err := fetch(url, &hashingWriter{file, digest})
	if err != nil {
		return n, err
	}
	if err := file.Sync(); err != nil {
		return n, err
	}
	if err := os.Rename(path, filepath.Join(dir, fmt.Sprintf("%x", digest.Sum(nil)))); err != nil {
		return n, err
	}
	folder, err := os.Open(dir)
	if err != nil {
		return n, err
	}
	defer folder.Close()
	return n, folder.Sync()
}

type hashingWriter struct {
	file   *os.File
	digest hash.Hash
}

func (w *hashingWriter) Write(p []byte) (int, error) {
	n, err := w.file.Write(p)
	w.digest.Write(p[:n])
	return n, err
}
