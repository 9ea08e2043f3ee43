// Package suite runs containerd's own conformance suite of content stores on the server behind a socket.
//
//	go test -c -o suite ./suite && ./suite -socket /run/blobtee/blobtee.sock -test.run 'TestRaw|TestMetadata|TestEdges'
//	./suite -socket /run/containerd/containerd.sock -test.run TestDaemon
package suite

import (
	"context"
	"flag"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/content/testsuite"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

var socket = flag.String("socket", "", "the server under test")

const maxMessage = 16 << 20

func dial(t testing.TB, more ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	if *socket == "" {
		t.Fatal("-socket is missing")
	}
	options := append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage+4096)),
	}, more...)
	conn, err := grpc.NewClient("unix://"+*socket, options...)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// clear empties a store, as each test of the suite expects to find it.
func clear(ctx context.Context, store content.Store) error {
	statuses, err := store.ListStatuses(ctx)
	if err != nil {
		return err
	}
	for _, status := range statuses {
		if err := store.Abort(ctx, status.Ref); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	var infos []content.Info
	if err := store.Walk(ctx, func(info content.Info) error {
		infos = append(infos, info)
		return nil
	}); err != nil {
		return err
	}
	for _, info := range infos {
		// A running containerd collects by itself.
		if err := store.Delete(ctx, info.Digest); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	return nil
}

func TestRaw(t *testing.T) {
	conn := dial(t)
	defer conn.Close()
	testsuite.ContentSuite(t, "raw", func(ctx context.Context, _ string) (context.Context, content.Store, func() error, error) {
		store := proxy.NewContentStore(conn)
		return ctx, store, func() error { return clear(context.Background(), store) }, clear(ctx, store)
	})
}

// behindMetadata is what containerd itself puts between its clients and a content store.
func behindMetadata(conn *grpc.ClientConn, opts ...metadata.DBOpt) testsuite.StoreInitFn {
	return func(ctx context.Context, root string) (context.Context, content.Store, func() error, error) {
		store := proxy.NewContentStore(conn)
		if err := clear(ctx, store); err != nil {
			return nil, nil, nil, err
		}
		db, err := bolt.Open(filepath.Join(root, "meta.db"), 0o600, nil)
		if err != nil {
			return nil, nil, nil, err
		}
		var count atomic.Uint64
		name := testsuite.Name(ctx)
		wrap := func(ctx context.Context, shared bool) (context.Context, func(context.Context) error, error) {
			namespace := fmt.Sprintf("%s-%d", name, count.Add(1))
			var err error
			if shared {
				err = db.Update(func(tx *bolt.Tx) error {
					return metadata.NewNamespaceStore(tx).SetLabel(ctx, namespace, labels.LabelSharedNamespace, "true")
				})
			}
			return namespaces.WithNamespace(ctx, namespace), func(context.Context) error { return nil }, err
		}
		return testsuite.SetContextWrapper(ctx, wrap), metadata.NewDB(db, store, nil, opts...).ContentStore(), db.Close, nil
	}
}

func TestMetadata(t *testing.T) {
	conn := dial(t)
	defer conn.Close()
	shared, isolated := behindMetadata(conn), behindMetadata(conn, metadata.WithPolicyIsolated)
	testsuite.ContentSuite(t, "metadata", shared)
	testsuite.ContentCrossNSSharedSuite(t, "metadata", shared)
	testsuite.ContentCrossNSIsolatedSuite(t, "metadata", isolated)
	testsuite.ContentSharedNSIsolatedSuite(t, "metadata", isolated)
}

// throughDaemon has a whole containerd between the suite and the store.
func throughDaemon(daemon *client.Client) testsuite.StoreInitFn {
	return func(ctx context.Context, _ string) (context.Context, content.Store, func() error, error) {
		var count atomic.Uint64
		name := testsuite.Name(ctx)
		wrap := func(ctx context.Context, shared bool) (context.Context, func(context.Context) error, error) {
			namespace := fmt.Sprintf("%s-%d", name, count.Add(1))
			ctx = namespaces.WithNamespace(ctx, namespace)
			if shared {
				if err := daemon.NamespaceService().SetLabel(ctx, namespace, labels.LabelSharedNamespace, "true"); err != nil {
					return nil, nil, err
				}
			}
			return daemon.WithLease(ctx)
		}
		done := func() error {
			for n := uint64(1); n <= count.Load(); n++ {
				namespace := fmt.Sprintf("%s-%d", name, n)
				if err := clear(namespaces.WithNamespace(context.Background(), namespace), daemon.ContentStore()); err != nil {
					return err
				}
			}
			return nil
		}
		return testsuite.SetContextWrapper(ctx, wrap), daemon.ContentStore(), done, nil
	}
}

func connect(t *testing.T) *client.Client {
	t.Helper()
	if *socket == "" {
		t.Fatal("-socket is missing")
	}
	daemon, err := client.New(*socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { daemon.Close() })
	return daemon
}

func TestDaemonShared(t *testing.T) {
	store := throughDaemon(connect(t))
	testsuite.ContentSuite(t, "daemon", store)
	testsuite.ContentCrossNSSharedSuite(t, "daemon", store)
}

// TestDaemonIsolated is for a containerd whose content_sharing_policy is "isolated".
func TestDaemonIsolated(t *testing.T) {
	store := throughDaemon(connect(t))
	testsuite.ContentSuite(t, "daemon", store)
	testsuite.ContentCrossNSIsolatedSuite(t, "daemon", store)
}

// TestDaemonIsolatedButForOne is what containerd 2.x can: a namespace may share with the others all the same.
func TestDaemonIsolatedButForOne(t *testing.T) {
	testsuite.ContentSharedNSIsolatedSuite(t, "daemon", throughDaemon(connect(t)))
}
