package suite

import (
	"context"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	api "github.com/containerd/containerd/api/services/content/v1"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// TestStopping asks without a pause while the server is told to stop, by whoever waits for the file "running". A write
// that is open then ends in its own time; new calls are answered, or unavailable, and nothing else.
func TestStopping(t *testing.T) {
	conn := dial(t)
	defer conn.Close()
	client := api.NewContentClient(conn)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	stream, err := client.Write(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := exchange(stream, &api.WriteContentRequest{Action: api.WriteAction_WRITE, Ref: "a", Data: []byte("kept")}); err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	var answered, unavailable atomic.Int64
	for range 8 {
		group.Add(1)
		go func() {
			defer group.Done()
			for ctx.Err() == nil {
				_, err := client.Info(ctx, &api.InfoRequest{Digest: digest.FromString("absent").String()})
				switch code := status.Code(err); code {
				case codes.NotFound:
					answered.Add(1)
				case codes.Unavailable:
					if unavailable.Add(1) > 50 {
						return
					}
					time.Sleep(10 * time.Millisecond)
				default:
					t.Errorf("%v: %v", code, err)
					return
				}
			}
		}()
	}
	for answered.Load() < 100 && ctx.Err() == nil {
		time.Sleep(10 * time.Millisecond)
	}
	if err := os.WriteFile("running", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1500 * time.Millisecond)
	done, err := exchange(stream, &api.WriteContentRequest{Action: api.WriteAction_COMMIT, Offset: 4})
	if err != nil || done.Digest != digest.FromString("kept").String() {
		t.Fatalf("commit: %v, %v", done, err)
	}
	group.Wait()
	if answered.Load() < 100 || unavailable.Load() < 8 {
		t.Errorf("%d calls answered, %d unavailable", answered.Load(), unavailable.Load())
	}
}
