// Package clock detects changes of the wall clock. A gateway without a battery boots with a
// wrong time, and operations that failed because of it can be retried as soon as the time
// is correct.
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

// Significant is the smallest reported step. NTP corrects smaller ones continually, and
// they matter to no certificate or token.
const Significant = time.Minute

// Steps sends the size of each significant step of the wall clock (positive: forward) until
// ctx ends. The channel holds one step; steps that are not received are added up. Waiting
// uses no CPU time: the kernel wakes the goroutine (timerfd_create(2),
// TFD_TIMER_CANCEL_ON_SET). The error means that the kernel provides no such timer.
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
			// Only a step ends this read with ECANCELED. The end of 32-bit time ends it
			// too.
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

// arm makes the next step end a read. Then it returns the offset of the wall clock from the
// boot clock, in this order so that no step is missed.
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
	// A step between the read and this call fails with ECANCELED, and is measured below.
	if err = errors.Join(err, failed); err != nil && !errors.Is(err, unix.ECANCELED) {
		return 0, fmt.Errorf("timerfd_settime: %w", err)
	}
	return offset()
}

// offset returns CLOCK_REALTIME minus CLOCK_BOOTTIME. Only steps change it, apart from the
// small amounts by which NTP slews the clock.
func offset() (time.Duration, error) {
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

// deliver sends step to a channel with one element, and adds the step that is waiting in
// it.
func deliver(steps chan time.Duration, step time.Duration) {
	select {
	case waiting := <-steps:
		step += waiting
	default:
	}
	steps <- step
}
