package suite

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"path/filepath"
	"testing"
	"time"

	api "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
	"google.golang.org/grpc"
)

func random(t *testing.T, size int) ([]byte, ocispec.Descriptor) {
	t.Helper()
	data := make([]byte, size)
	if _, err := rand.Read(data); err != nil {
		t.Fatal(err)
	}
	return data, ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(size)}
}

// open opens a writer, waiting at most a few seconds for whoever still holds its ref.
func open(ctx context.Context, t *testing.T, store content.Store, ref string) content.Writer {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		writer, err := store.Writer(ctx, content.WithRef(ref))
		if err == nil {
			return writer
		}
		if !errdefs.IsUnavailable(err) || time.Now().After(deadline) {
			t.Fatalf("open %s: %v", ref, err)
		}
	}
}

// exchange sends one request of a write and waits for its answer.
func exchange(stream api.Content_WriteClient, request *api.WriteContentRequest) (*api.WriteContentResponse, error) {
	if err := stream.Send(request); err != nil {
		return nil, err
	}
	return stream.Recv()
}

// containerd's client cuts what it writes into messages of 8 MiB, so the largest one is sent without it.
func TestEdgesLargeMessages(t *testing.T) {
	conn := dial(t)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	stream, err := api.NewContentClient(conn).Write(ctx)
	if err != nil {
		t.Fatal(err)
	}
	data, desc := random(t, maxMessage)
	written, err := exchange(stream, &api.WriteContentRequest{Action: api.WriteAction_WRITE, Ref: "one message", Data: data})
	if err != nil || written.Offset != desc.Size {
		t.Fatalf("%d bytes in one message: %v, %v", desc.Size, written, err)
	}
	done, err := exchange(stream, &api.WriteContentRequest{Action: api.WriteAction_COMMIT, Offset: desc.Size})
	if err != nil || done.Digest != desc.Digest.String() {
		t.Fatalf("commit: %v, %v", done, err)
	}
	if err := clear(ctx, proxy.NewContentStore(conn)); err != nil {
		t.Fatal(err)
	}
}

func TestEdgesManyWriters(t *testing.T) {
	conn := dial(t)
	defer conn.Close()
	store := proxy.NewContentStore(conn)
	ctx := context.Background()
	writers := make([]content.Writer, 300)
	for i := range writers {
		writers[i] = open(ctx, t, store, fmt.Sprintf("writer %d", i))
		if _, err := fmt.Fprintf(writers[i], "content %d", i); err != nil {
			t.Fatal(err)
		}
	}
	for i, writer := range writers {
		if err := writer.Commit(ctx, 0, digest.FromString(fmt.Sprintf("content %d", i))); err != nil {
			t.Fatal(err)
		}
		writer.Close()
	}
	if err := clear(ctx, store); err != nil {
		t.Fatal(err)
	}
}

// TestEdgesRefIsReleased ends a write in the two ways that say no goodbye: a cancel on a connection that stays, and a
// socket that is cut below gRPC.
func TestEdgesRefIsReleased(t *testing.T) {
	conn := dial(t)
	defer conn.Close()
	store := proxy.NewContentStore(conn)
	ctx := context.Background()
	for _, how := range []string{"cancel", "lost connection"} {
		t.Run(how, func(t *testing.T) {
			var under net.Conn
			other := dial(t, grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
				var err error
				under, err = (&net.Dialer{}).DialContext(ctx, "unix", *socket)
				return under, err
			}))
			defer other.Close()
			cancellable, cancel := context.WithCancel(ctx)
			defer cancel()
			writer := open(cancellable, t, proxy.NewContentStore(other), how)
			if _, err := writer.Write([]byte("kept")); err != nil {
				t.Fatal(err)
			}
			if _, err := store.Writer(ctx, content.WithRef(how)); !errdefs.IsUnavailable(err) {
				t.Fatalf("the ref is not locked: %v", err)
			}
			if how == "cancel" {
				cancel()
			} else if err := under.Close(); err != nil {
				t.Fatal(err)
			}
			again := open(ctx, t, store, how)
			defer again.Close()
			status, err := again.Status()
			if err != nil || status.Offset != 4 {
				t.Fatalf("resumed at %d: %v", status.Offset, err)
			}
			if how == "cancel" {
				// The connection is as good as before.
				if _, err := proxy.NewContentStore(other).ListStatuses(ctx); err != nil {
					t.Fatal(err)
				}
			}
			if err := again.Commit(ctx, 4, digest.FromString("kept")); err != nil && !errdefs.IsAlreadyExists(err) {
				t.Fatal(err)
			}
		})
	}
	if err := clear(ctx, store); err != nil {
		t.Fatal(err)
	}
}

func TestEdgesCollection(t *testing.T) {
	const blobs, kept = 1200, 7
	conn := dial(t)
	defer conn.Close()
	store := proxy.NewContentStore(conn)
	ctx := namespaces.WithNamespace(context.Background(), "collected")
	if err := clear(ctx, store); err != nil {
		t.Fatal(err)
	}
	file, err := bolt.Open(filepath.Join(t.TempDir(), "meta.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	db := metadata.NewDB(file, store, nil)
	if err := db.Init(ctx); err != nil {
		t.Fatal(err)
	}
	for i := range blobs {
		data := []byte(fmt.Sprintf("blob %d", i))
		desc := ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}
		var opts []content.Opt
		if i < kept {
			opts = append(opts, content.WithLabels(map[string]string{"containerd.io/gc.root": "yes"}))
		}
		ref := fmt.Sprintf("ref %d", i)
		if err := content.WriteBlob(ctx, db.ContentStore(), ref, bytes.NewReader(data), desc, opts...); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := db.GarbageCollect(ctx); err != nil {
		t.Fatal(err)
	}
	count := 0
	if err := store.Walk(ctx, func(content.Info) error { count++; return nil }); err != nil {
		t.Fatal(err)
	}
	if count != kept {
		t.Fatalf("%d blobs are left, %d should be", count, kept)
	}
	if err := clear(ctx, store); err != nil {
		t.Fatal(err)
	}
}
