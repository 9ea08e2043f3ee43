// What containerd brings to the tests of the content service.
//
//	serve -socket PATH -root DIR [-labels KIND]     containerd's own local store behind the content service: the peer to
//	                                                compare with
//
// KIND is where labels are: in "memory", gone with the process; in "bolt", a file that each change is synced to; or in
// containerd's whole "metadata", which is what clients of a containerd talk to that has a content store of its own.
//
// The suite is in the test files: `go test -c`, then `-socket PATH -mode MODE -test.v` (see suite_test.go).
package main

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthapi "google.golang.org/grpc/health/grpc_health_v1"

	_ "crypto/sha512" // so that digests of these algorithms are valid
)

// A message of 16 MiB of data has a little more around it.
const maxMessage = 16<<20 + 64<<10

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 || args[0] != "serve" {
		return errors.New("usage: serve -socket PATH -root DIR [-labels memory|bolt|metadata]")
	}
	flags := flag.NewFlagSet("serve", flag.ExitOnError)
	socket := flags.String("socket", "", "where to listen")
	root := flags.String("root", "", "folder of the store")
	labels := flags.String("labels", "memory", "where labels are kept: memory, bolt or metadata")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	store, err := newStore(*root, *labels)
	if err != nil {
		return err
	}
	listener, err := net.Listen("unix", *socket)
	if err != nil {
		return err
	}
	options := []grpc.ServerOption{grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage)}
	if *labels == "metadata" {
		options = append(options, namespacing...)
	}
	server := grpc.NewServer(options...)
	contentapi.RegisterContentServer(server, contentserver.New(store))
	healthapi.RegisterHealthServer(server, health.NewServer())
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-ended
		server.Stop()
	}()
	return server.Serve(listener)
}

func newStore(root, labels string) (content.Store, error) {
	if err := os.MkdirAll(root, 0o755); err != nil {
		return nil, err
	}
	switch labels {
	case "memory":
		return local.NewLabeledStore(root, &memoryLabels{})
	case "bolt":
		kept, err := newBoltLabels(root)
		if err != nil {
			return nil, err
		}
		return local.NewLabeledStore(root, kept)
	case "metadata":
		return newMetadataStore(root)
	}
	return nil, fmt.Errorf("labels are kept in memory, bolt or metadata, not in %q", labels)
}
