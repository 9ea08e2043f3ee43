// The stargz tools' own library, judging what blobtee writes and writing what blobtee has to read.
//
//	stargz verify FILE TOC-DIGEST    open, verify and read everything; a summary as JSON on standard output
//	stargz build TAR OUT LEVEL       one writer, the tar kept byte by byte, as BuildKit calls it
//	stargz rebuild TAR OUT [PATH...] the tar sorted and written anew with a landmark, as image optimisers do
package main

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/opencontainers/go-digest"
)

type node struct {
	Name     string            `json:"name"` // the entry's own: another than its path for further hard links
	Type     string            `json:"type"`
	Size     int64             `json:"size"`
	Mode     int64             `json:"mode"`
	UID      int               `json:"uid"`
	GID      int               `json:"gid"`
	Uname    string            `json:"uname"`
	Gname    string            `json:"gname"`
	ModTime  int64             `json:"mtime"`
	LinkName string            `json:"linkname"`
	Links    int               `json:"links"`
	Major    int               `json:"major"`
	Minor    int               `json:"minor"`
	Xattrs   map[string][]byte `json:"xattrs"`
	Content  string            `json:"content"` // digest of what reading it gave
	Digest   string            `json:"digest"`  // digest that the table states
	Chunks   int               `json:"chunks"`
	Offset   int64             `json:"offset"`
}

type summary struct {
	TOC      string          `json:"toc"`
	Unpacked string          `json:"unpacked"` // digest of the tar without the table, as BuildKit decodes it
	Nodes    map[string]node `json:"nodes"`
}

func main() {
	var err error
	switch args := os.Args[1:]; {
	case len(args) == 3 && args[0] == "verify":
		err = verify(args[1], digest.Digest(args[2]))
	case len(args) == 4 && args[0] == "build":
		err = build(args[1], args[2], args[3])
	case len(args) >= 3 && args[0] == "rebuild":
		err = rebuild(args[1], args[2], args[3:])
	default:
		err = fmt.Errorf("usage: stargz verify FILE TOC-DIGEST | build TAR OUT LEVEL | rebuild TAR OUT [PATH...]")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func section(name string) (*os.File, *io.SectionReader, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, nil, err
	}
	info, err := file.Stat()
	if err != nil {
		return nil, nil, err
	}
	return file, io.NewSectionReader(file, 0, info.Size()), nil
}

func verify(name string, toc digest.Digest) error {
	file, blob, err := section(name)
	if err != nil {
		return err
	}
	defer file.Close()
	reader, err := estargz.Open(blob)
	if err != nil {
		return err
	}
	verifier, err := reader.VerifyTOC(toc)
	if err != nil {
		return err
	}
	result := summary{TOC: reader.TOCDigest().String(), Nodes: map[string]node{}}
	root, ok := reader.Lookup("")
	if !ok {
		return fmt.Errorf("the table has no root")
	}
	if err := walk(reader, verifier, "", root, result.Nodes); err != nil {
		return err
	}
	unpacked, err := estargz.Unpack(blob, new(estargz.GzipDecompressor))
	if err != nil {
		return err
	}
	defer unpacked.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, unpacked); err != nil {
		return err
	}
	result.Unpacked = fmt.Sprintf("sha256:%x", hash.Sum(nil))
	return json.NewEncoder(os.Stdout).Encode(result)
}

func walk(r *estargz.Reader, v estargz.TOCEntryVerifier, name string, e *estargz.TOCEntry, to map[string]node) error {
	found := node{
		Name: e.Name, Type: e.Type, Size: e.Size, Mode: e.Mode, UID: e.UID, GID: e.GID, Uname: e.Uname, Gname: e.Gname,
		ModTime: modTime(e), LinkName: e.LinkName, Links: e.NumLink, Major: e.DevMajor, Minor: e.DevMinor,
		Xattrs: e.Xattrs, Digest: e.Digest, Offset: e.Offset,
	}
	if e.Type == "reg" {
		if err := read(r, v, name, e, &found); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	to[name] = found
	var err error
	e.ForeachChild(func(base string, child *estargz.TOCEntry) bool {
		err = walk(r, v, path.Join(name, base), child, to)
		return err == nil
	})
	return err
}

func modTime(e *estargz.TOCEntry) int64 {
	if e.ModTime().Equal(time.Time{}) {
		return 0
	}
	return e.ModTime().Unix()
}

// read takes the file chunk by chunk, each against its digest, and then once more in one go.
func read(r *estargz.Reader, v estargz.TOCEntryVerifier, name string, e *estargz.TOCEntry, found *node) error {
	content, err := r.OpenFile(name)
	if err != nil {
		return err
	}
	inChunks := sha256.New()
	for position := int64(0); position < e.Size; {
		chunk, ok := r.ChunkEntryForOffset(e.Name, position) // a hard link has no chunks of its own
		if !ok {
			return fmt.Errorf("no chunk for byte %d", position)
		}
		if chunk.ChunkOffset != position || chunk.ChunkSize <= 0 {
			return fmt.Errorf("a chunk of %d bytes at %d for byte %d", chunk.ChunkSize, chunk.ChunkOffset, position)
		}
		data := make([]byte, chunk.ChunkSize)
		if _, err := content.ReadAt(data, position); err != nil {
			return err
		}
		check, err := v.Verifier(chunk)
		if err != nil {
			return err
		}
		if _, err := check.Write(data); err != nil || !check.Verified() {
			return fmt.Errorf("the chunk at %d is not what its digest says", position)
		}
		inChunks.Write(data)
		position += chunk.ChunkSize
		found.Chunks++
	}
	whole := make([]byte, e.Size)
	if e.Size > 0 {
		if _, err := content.ReadAt(whole, 0); err != nil {
			return err
		}
	}
	digest := sha256.Sum256(whole)
	if !bytes.Equal(digest[:], inChunks.Sum(nil)) {
		return fmt.Errorf("the chunks are not what the whole is")
	}
	found.Content = fmt.Sprintf("sha256:%x", digest)
	return nil
}

func build(tar, out, level string) error {
	number, err := strconv.Atoi(level)
	if err != nil || number < gzip.NoCompression || number > gzip.BestCompression {
		return fmt.Errorf("no level: %q", level)
	}
	from, err := os.Open(tar)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.Create(out)
	if err != nil {
		return err
	}
	defer to.Close()
	writer := estargz.NewWriterLevel(to, number)
	if err := writer.AppendTarLossLess(from); err != nil {
		return err
	}
	toc, err := writer.Close()
	if err != nil {
		return err
	}
	fmt.Println(toc)
	return to.Close()
}

func rebuild(tar, out string, paths []string) error {
	file, from, err := section(tar)
	if err != nil {
		return err
	}
	defer file.Close()
	to, err := os.Create(out)
	if err != nil {
		return err
	}
	defer to.Close()
	blob, err := estargz.Build(from, estargz.WithPrioritizedFiles(paths))
	if err != nil {
		return err
	}
	defer blob.Close()
	if _, err := io.Copy(to, blob); err != nil {
		return err
	}
	fmt.Println(blob.TOCDigest())
	return to.Close()
}
