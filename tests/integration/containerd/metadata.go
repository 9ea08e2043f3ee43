package main

import (
	"context"
	"log"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"google.golang.org/grpc"
	grpcmetadata "google.golang.org/grpc/metadata"

	"github.com/containerd/containerd/v2/pkg/namespaces"
)

// Between the last delete and the collection that removes what was deleted.
const collectAfter = 200 * time.Millisecond

// newMetadataStore is the store that clients of a containerd with its own content store talk to: containerd's metadata
// in bolt over the local store, with references and labels of each namespace. What is deleted is collected a moment
// later.
func newMetadataStore(root string) (content.Store, error) {
	blobs, err := local.NewStore(root)
	if err != nil {
		return nil, err
	}
	bolt, err := openBolt(filepath.Join(root, "meta.db"))
	if err != nil {
		return nil, err
	}
	db := metadata.NewDB(bolt, blobs, nil)
	if err := db.Init(context.Background()); err != nil {
		return nil, err
	}
	dirty := make(chan struct{}, 1)
	db.RegisterMutationCallback(func(isDirty bool) {
		if isDirty {
			select {
			case dirty <- struct{}{}:
			default:
			}
		}
	})
	go func() {
		for range dirty {
			time.Sleep(collectAfter)
			if _, err := db.GarbageCollect(context.Background()); err != nil {
				log.Print("cannot collect: ", err)
			}
		}
	}()
	return db.ContentStore(), nil
}

// withNamespace takes the namespace from where containerd's clients put it.
func withNamespace(ctx context.Context) context.Context {
	if given := grpcmetadata.ValueFromIncomingContext(ctx, namespaces.GRPCHeader); len(given) > 0 {
		return namespaces.WithNamespace(ctx, given[0])
	}
	return ctx
}

type streamWithNamespace struct{ grpc.ServerStream }

func (s streamWithNamespace) Context() context.Context {
	return withNamespace(s.ServerStream.Context())
}

var namespacing = []grpc.ServerOption{
	grpc.UnaryInterceptor(func(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
		return handle(withNamespace(ctx), request)
	}),
	grpc.StreamInterceptor(func(service any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
		return handle(service, streamWithNamespace{stream})
	}),
}
