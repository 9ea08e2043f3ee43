package main

import (
	"bufio"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io"
	"os"

	kgzip "github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// What a converter does with a layer: decompress, hash the tar, compress, hash and store the result. Readers and writers
// of files have buffers of one mebibyte, which the libraries below would not take by themselves.

type opener func(io.Reader) (io.Reader, error)
type packer func(io.Writer) (io.WriteCloser, error)

var openers = map[string]opener{
	"tar":  func(r io.Reader) (io.Reader, error) { return r, nil },
	"gzip": func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) },
	// one goroutine, as the row says
	"zstd": func(r io.Reader) (io.Reader, error) { return zstd.NewReader(r, zstd.WithDecoderConcurrency(1)) },
	// as many as it likes, which is its default
	"zstd-async": func(r io.Reader) (io.Reader, error) { return zstd.NewReader(r) },
}

var packers = map[string]packer{
	// the standard library's default level, 6
	"gzip":  func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil },
	"kgzip": func(w io.Writer) (io.WriteCloser, error) { return kgzip.NewWriterLevel(w, 6) },
	// the default level, which stands for the 3 of the zstd tool; it compresses in goroutines of its own
	"zstd": func(w io.Writer) (io.WriteCloser, error) {
		return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedDefault))
	},
}

// convert answers how many bytes the layer is long, uncompressed and as stored.
func convert(from, to, in, out string) (int64, int64, error) {
	source, err := os.Open(in)
	if err != nil {
		return 0, 0, err
	}
	defer source.Close()
	tar, err := openers[from](bufio.NewReaderSize(source, bufferBytes))
	if err != nil {
		return 0, 0, err
	}
	file, err := os.Create(out)
	if err != nil {
		return 0, 0, err
	}
	defer file.Close()
	stored, diffID := sha256.New(), sha256.New()
	buffered := bufio.NewWriterSize(&hashingWriter{file, stored}, bufferBytes)
	packed, err := packers[to](buffered)
	if err != nil {
		return 0, 0, err
	}
	n, err := io.CopyBuffer(writerOnly{io.MultiWriter(diffID, packed)}, readerOnly{tar}, make([]byte, bufferBytes))
	if err != nil {
		return n, 0, err
	}
	if err := packed.Close(); err != nil {
		return n, 0, err
	}
	if err := buffered.Flush(); err != nil {
		return n, 0, err
	}
	info, err := file.Stat()
	if err != nil {
		return n, 0, err
	}
	return n, info.Size(), os.WriteFile(out+".digests", fmt.Appendf(nil, "%x %x\n", diffID.Sum(nil), stored.Sum(nil)), 0o600)
}

func unpack(from, in string) (int64, error) {
	source, err := os.Open(in)
	if err != nil {
		return 0, err
	}
	defer source.Close()
	tar, err := openers[from](bufio.NewReaderSize(source, bufferBytes))
	if err != nil {
		return 0, err
	}
	return io.CopyBuffer(discard{}, readerOnly{tar}, make([]byte, bufferBytes))
}

// These hide ReadFrom and WriteTo, so that io.CopyBuffer uses the given buffer.
type readerOnly struct{ io.Reader }
type writerOnly struct{ io.Writer }
