// Package main does with a containerd over CRI what a kubelet would: one image, one container, and everything away again.
//
//	cri -socket PATH -image REFERENCE -folder DIR
//
// The image's command is run in a sandbox on the host's network. What it writes goes to standard output.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	patience = 90 * time.Second
	interval = 50 * time.Millisecond
	logName  = "log"
)

func main() {
	socket := flag.String("socket", "", "where containerd listens")
	image := flag.String("image", "", "what is pulled and run")
	folder := flag.String("folder", "", "an empty folder for the container's log")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := run(ctx, *socket, *image, *folder); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, socket, image, folder string) (err error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	images, runtime := cri.NewImageServiceClient(conn), cri.NewRuntimeServiceClient(conn)

	wanted := &cri.ImageSpec{Image: image}
	if _, err := images.PullImage(ctx, &cri.PullImageRequest{Image: wanted}); err != nil {
		return fmt.Errorf("pull: %w", err)
	}
	pulled, err := images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: wanted})
	if err != nil || pulled.Image == nil {
		return fmt.Errorf("status of the pulled image: %v, %w", pulled, err)
	}
	if err := runIn(ctx, runtime, wanted, folder); err != nil {
		return err
	}
	if _, err := images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: wanted}); err != nil {
		return fmt.Errorf("remove the image: %w", err)
	}
	gone, err := images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: wanted})
	if err != nil || gone.Image != nil {
		return fmt.Errorf("the image is still there: %v, %w", gone, err)
	}
	return nil
}

// runIn runs the image to its end in a sandbox of its own, which is gone afterwards.
func runIn(ctx context.Context, runtime cri.RuntimeServiceClient, image *cri.ImageSpec, folder string) (err error) {
	host := &cri.NamespaceOption{Network: cri.NamespaceMode_NODE}
	sandbox := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: "greeter", Namespace: "default", Uid: filepath.Base(folder)},
		LogDirectory: folder,
		Linux: &cri.LinuxPodSandboxConfig{
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: host},
		},
	}
	pod, err := runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: sandbox})
	if err != nil {
		return fmt.Errorf("run the sandbox: %w", err)
	}
	defer func() {
		_, stopping := runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: pod.PodSandboxId})
		_, removing := runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: pod.PodSandboxId})
		err = errors.Join(err, stopping, removing)
	}()
	made, err := runtime.CreateContainer(ctx, &cri.CreateContainerRequest{
		PodSandboxId:  pod.PodSandboxId,
		SandboxConfig: sandbox,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "greeter"},
			Image:    image,
			LogPath:  logName,
			Linux: &cri.LinuxContainerConfig{
				SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: host},
			},
		},
	})
	if err != nil {
		return fmt.Errorf("create the container: %w", err)
	}
	if _, err := runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: made.ContainerId}); err != nil {
		return fmt.Errorf("start the container: %w", err)
	}
	for {
		told, err := runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: made.ContainerId})
		if err != nil {
			return fmt.Errorf("status of the container: %w", err)
		}
		if told.Status.State == cri.ContainerState_CONTAINER_EXITED {
			if told.Status.ExitCode != 0 {
				return fmt.Errorf("the container ended with %d: %s", told.Status.ExitCode, told.Status.Message)
			}
			break
		}
		time.Sleep(interval)
	}
	said, err := os.ReadFile(filepath.Join(folder, logName))
	if err != nil {
		return err
	}
	if _, err := os.Stdout.Write(said); err != nil {
		return err
	}
	_, err = runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: made.ContainerId})
	return err
}
