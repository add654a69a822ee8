package store_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/dpsd-project/dpsd/store"
)

// directory returns a state directory of dpsd, instead of /var/lib/dpsd.
func directory() (string, func()) {
	path, err := os.MkdirTemp("", "dpsd")
	if err != nil {
		log.Fatal(err)
	}
	s, err := store.Open(store.Options{Directory: path}, time.Now())
	if err != nil {
		log.Fatal(err)
	}
	if _, err := s.Save(sample(), time.Now()); err != nil {
		log.Fatal(err)
	}
	return path, func() {
		s.Close()
		os.RemoveAll(path)
	}
}

func ExampleRead() {
	path, remove := directory()
	defer remove()

	rec, err := store.Read(path)
	if err != nil {
		fmt.Println(err) // errors.Is(err, store.ErrNoRecord): not provisioned yet
		return
	}
	fmt.Println(rec.DeviceID, "belongs to", rec.AssignedHub)
	// Output: gw-0001 belongs to contoso-eu.azure-devices.net
}

func ExampleWatch() {
	path, remove := directory()
	defer remove()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	records, err := store.Watch(ctx, path)
	if err != nil {
		fmt.Println(err)
		return
	}
	for rec := range records {
		fmt.Printf("generation %d: %s belongs to %s\n", rec.Generation, rec.DeviceID, rec.AssignedHub)
		cancel() // a service would continue
	}
	// Output: generation 1: gw-0001 belongs to contoso-eu.azure-devices.net
}
