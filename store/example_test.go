package store_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"strings"
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
	if err := s.Close(); err != nil {
		log.Fatal(err)
	}
	return path, func() { os.RemoveAll(path) }
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

func ExampleCertificate_Read() {
	path, remove := directory()
	defer remove()
	requestAndSave(path) // the daemon does this

	rec, err := store.Read(path)
	if err != nil || rec.Certificate == nil {
		fmt.Println("no certificate has been issued:", err)
		return
	}
	chain, key, err := rec.Certificate.Read()
	if err != nil {
		fmt.Println(err) // errors.Is(err, fs.ErrNotExist): the pair has expired; read the record again
		return
	}
	// A service would call tls.X509KeyPair(chain, key).
	fmt.Println(strings.SplitN(string(chain), "\n", 2)[0], strings.SplitN(string(key), "\n", 2)[0])
	// Output: -----BEGIN CERTIFICATE----- -----BEGIN PRIVATE KEY-----
}

// requestAndSave saves a certificate in a state directory.
func requestAndSave(path string) {
	s, err := store.Open(store.Options{Directory: path}, time.Now())
	if err != nil {
		log.Fatal(err)
	}
	if err := s.SavePendingKey(pendingKey(1)); err != nil {
		log.Fatal(err)
	}
	if err := s.SavePair(pairUntil(time.Now().AddDate(0, 0, 90)), chainFor(keyText(1)), time.Now()); err != nil {
		log.Fatal(err)
	}
	if _, err := s.Save(sample(), time.Now()); err != nil {
		log.Fatal(err)
	}
	if err := s.Close(); err != nil {
		log.Fatal(err)
	}
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
