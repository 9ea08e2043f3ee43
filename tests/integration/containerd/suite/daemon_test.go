package suite

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestDaemonManyWriters(t *testing.T) {
	daemon := connect(t)
	ctx, done, err := daemon.WithLease(namespaces.WithNamespace(context.Background(), "many-writers"))
	if err != nil {
		t.Fatal(err)
	}
	defer done(ctx)
	store := daemon.ContentStore()
	writers := make([]content.Writer, 300)
	for i := range writers {
		writers[i] = open(ctx, t, store, fmt.Sprintf("writer %d", i))
		if _, err := fmt.Fprintf(writers[i], "through a daemon %d", i); err != nil {
			t.Fatal(err)
		}
	}
	for i, writer := range writers {
		if err := writer.Commit(ctx, 0, digest.FromString(fmt.Sprintf("through a daemon %d", i))); err != nil {
			t.Fatal(err)
		}
		writer.Close()
	}
}

// TestDaemonCollection lets containerd collect 1,200 blobs while a write is open, which has to go on, and another is
// closed and unfinished, whose lease ends and which has to go.
func TestDaemonCollection(t *testing.T) {
	const blobs, kept = 1200, 7
	daemon := connect(t)
	plain := namespaces.WithNamespace(context.Background(), "collected")
	ctx, _, err := daemon.WithLease(plain)
	if err != nil {
		t.Fatal(err)
	}
	held, release, err := daemon.WithLease(plain)
	if err != nil {
		t.Fatal(err)
	}
	defer release(held)
	store := daemon.ContentStore()
	unfinished := open(ctx, t, store, "unfinished")
	if _, err := unfinished.Write([]byte("half")); err != nil {
		t.Fatal(err)
	}
	unfinished.Close()
	writing := open(held, t, store, "under way")
	if _, err := writing.Write([]byte("first half, ")); err != nil {
		t.Fatal(err)
	}
	for i := range blobs {
		data := []byte(fmt.Sprintf("collected %d", i))
		desc := ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}
		var opts []content.Opt
		if i < kept {
			opts = append(opts, content.WithLabels(map[string]string{"containerd.io/gc.root": "yes"}))
		}
		if err := content.WriteBlob(ctx, store, fmt.Sprintf("ref %d", i), bytes.NewReader(data), desc, opts...); err != nil {
			t.Fatal(err)
		}
	}
	id, ok := leases.FromContext(ctx)
	if !ok {
		t.Fatal("no lease")
	}
	if err := daemon.LeasesService().Delete(ctx, leases.Lease{ID: id}, leases.SynchronousDelete); err != nil {
		t.Fatal(err)
	}
	count := 0
	if err := store.Walk(plain, func(content.Info) error { count++; return nil }); err != nil {
		t.Fatal(err)
	}
	if count != kept {
		t.Fatalf("%d blobs are left, %d should be", count, kept)
	}
	if _, err := writing.Write([]byte("second half")); err != nil {
		t.Fatal(err)
	}
	if err := writing.Commit(held, 0, digest.FromString("first half, second half")); err != nil {
		t.Fatal(err)
	}
	statuses, err := store.ListStatuses(plain)
	if err != nil {
		t.Fatal(err)
	}
	if len(statuses) != 0 {
		t.Fatalf("unfinished blobs are left: %v", statuses)
	}
}
