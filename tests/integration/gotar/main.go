// Reads tars, each behind its length in four bytes, from standard input and says in a line of JSON each what Go's
// archive/tar, which containerd and umoci unpack with, sees in it.
package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"io"
	"os"
)

type entry struct {
	Type          byte
	Name, Link    []byte
	Uname, Gname  []byte
	UID, GID      int
	Mode, Seconds int64
	Xattrs        int
	Data          []byte
}

func entries(data []byte) (found []entry, failure string) {
	reader := tar.NewReader(bytes.NewReader(data))
	for {
		header, err := reader.Next()
		if err == io.EOF {
			return found, ""
		}
		if err != nil {
			return found, err.Error()
		}
		content, err := io.ReadAll(io.LimitReader(reader, 1<<20))
		if err != nil {
			return found, err.Error()
		}
		found = append(found, entry{
			header.Typeflag, []byte(header.Name), []byte(header.Linkname), []byte(header.Uname),
			[]byte(header.Gname), header.Uid, header.Gid, header.Mode, header.ModTime.Unix(),
			len(header.Xattrs), content,
		})
	}
}

func main() {
	in, out := bufio.NewReader(os.Stdin), bufio.NewWriter(os.Stdout)
	for {
		var length uint32
		if binary.Read(in, binary.LittleEndian, &length) != nil {
			return
		}
		data := make([]byte, length)
		if _, err := io.ReadFull(in, data); err != nil {
			return
		}
		found, failure := entries(data)
		line, _ := json.Marshal(map[string]any{"entries": found, "failure": failure})
		out.Write(append(line, '\n'))
		out.Flush()
	}
}
