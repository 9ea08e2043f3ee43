// What containerd brings to the tests of the content service.
//
//	serve -socket PATH -root DIR     containerd's own local store behind the content service: the peer to compare with
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
		return errors.New("usage: serve -socket PATH -root DIR")
	}
	flags := flag.NewFlagSet("serve", flag.ExitOnError)
	socket := flags.String("socket", "", "where to listen")
	root := flags.String("root", "", "folder of the store")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	store, err := local.NewLabeledStore(*root, &memoryLabels{})
	if err != nil {
		return err
	}
	listener, err := net.Listen("unix", *socket)
	if err != nil {
		return err
	}
	server := grpc.NewServer(grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage))
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
