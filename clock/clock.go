// Package clock tells when somebody sets the wall clock: a gateway without a
// battery boots with a wrong one, and what failed because of it can be tried
// again as soon as it is right.
package clock

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Significant is the least step that counts. NTP mends smaller ones all the
// time, and no certificate or token minds them.
const Significant = time.Minute

// Steps sends the size of each significant step of the wall clock (positive:
// forward) until ctx ends. The channel holds one step; those that nobody takes
// are added up. Waiting costs nothing: the kernel wakes it, timerfd_create(2),
// TFD_TIMER_CANCEL_ON_SET. The error says that the kernel gives no such timer.
func Steps(ctx context.Context) (<-chan time.Duration, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_REALTIME, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("timerfd_create: %w", err)
	}
	timer := os.NewFile(uintptr(fd), "timerfd")
	last, err := arm(timer)
	if err != nil {
		_ = timer.Close()
		return nil, err
	}
	steps := make(chan time.Duration, 1)
	stop := context.AfterFunc(ctx, func() { _ = timer.Close() })
	go func() {
		defer stop()
		defer timer.Close()
		var expirations [8]byte
		for {
			// Only a step ends this read, by ECANCELED; or the end of 32-bit time.
			if _, err := timer.Read(expirations[:]); !errors.Is(err, unix.ECANCELED) {
				return
			}
			now, err := arm(timer)
			if err != nil {
				return
			}
			if step := now - last; significant(step) {
				deliver(steps, step)
			}
			last = now
		}
	}()
	return steps, nil
}

// arm lets the next step end a read, and returns how far the wall clock is
// ahead of the boot's: taken afterwards, so that no step falls between.
func arm(timer *os.File) (time.Duration, error) {
	connection, err := timer.SyscallConn()
	if err != nil {
		return 0, err
	}
	never := unix.ItimerSpec{Value: unix.Timespec{Sec: math.MaxInt32}} // Sec has 32 bits on arm
	var failed error
	err = connection.Control(func(fd uintptr) {
		failed = unix.TimerfdSettime(int(fd), unix.TFD_TIMER_ABSTIME|unix.TFD_TIMER_CANCEL_ON_SET, &never, nil)
	})
	// A step between the read and here is told at once, and measured below.
	if err = errors.Join(err, failed); err != nil && !errors.Is(err, unix.ECANCELED) {
		return 0, fmt.Errorf("timerfd_settime: %w", err)
	}
	return ahead()
}

// ahead is CLOCK_REALTIME minus CLOCK_BOOTTIME: it changes only by steps, and
// by the little that NTP slews.
func ahead() (time.Duration, error) {
	var wall, boot unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot); err != nil {
		return 0, fmt.Errorf("clock_gettime: %w", err)
	}
	if err := unix.ClockGettime(unix.CLOCK_REALTIME, &wall); err != nil {
		return 0, fmt.Errorf("clock_gettime: %w", err)
	}
	return time.Duration(wall.Nano() - boot.Nano()), nil
}

func significant(step time.Duration) bool { return step >= Significant || step <= -Significant }

// deliver puts step into the channel of one, adding to what lies there.
func deliver(steps chan time.Duration, step time.Duration) {
	select {
	case waiting := <-steps:
		step += waiting
	default:
	}
	steps <- step
}
