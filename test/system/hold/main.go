// Command hold blocks every program that opens a file until hold ends, like a disk or a file
// server that no longer answers. It uses a permission event of fanotify(7) that it does not
// answer.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: hold FILE")
		os.Exit(2)
	}
	if err := hold(os.Args[1]); err != nil {
		fmt.Fprintf(os.Stderr, "hold: %s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}

func hold(file string) error {
	group, err := unix.FanotifyInit(unix.FAN_CLASS_CONTENT|unix.FAN_CLOEXEC, unix.O_RDONLY|unix.O_LARGEFILE)
	if err != nil {
		return fmt.Errorf("fanotify_init: %w", err)
	}
	if err := unix.FanotifyMark(group, unix.FAN_MARK_ADD, unix.FAN_OPEN_PERM, unix.AT_FDCWD, file); err != nil {
		return fmt.Errorf("fanotify_mark: %w", err)
	}
	fmt.Println("held:", file)
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM, syscall.SIGINT)
	<-ended
	return nil // the kernel releases the waiting programs
}
