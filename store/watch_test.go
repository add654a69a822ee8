package store_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/dpsd-project/dpsd/store"
)

func TestWatch(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	directory := filepath.Join(t.TempDir(), "state")
	records, err := store.Watch(ctx, directory)
	if err != nil {
		t.Fatal(err)
	}
	expect := func(generation uint64, device string) {
		t.Helper()
		if rec := <-records; rec.Generation != generation || rec.DeviceID != device {
			t.Fatalf("generation %d of %s, want %d of %s", rec.Generation, rec.DeviceID, generation, device)
		}
	}
	s := mustOpen(t, store.Options{Directory: directory})

	// The directory does not exist at first, then there is a record.
	mustSave(t, s, numbered(1), store.Written)
	expect(1, "gw-0001")

	// The same identity from another configuration is not sent; the next record is.
	other := numbered(1)
	other.ConfigFingerprint = store.Fingerprint("a", "b", "c", nil)
	mustSave(t, s, other, store.FingerprintOnly)
	mustSave(t, s, numbered(2), store.Written)
	expect(2, "gw-0002")

	// A receiver that was not ready gets the latest record.
	mustSave(t, s, numbered(3), store.Written)
	mustSave(t, s, numbered(4), store.Written)
	for rec := range records {
		if rec.Generation == 4 {
			break
		}
	}

	// A damaged record is not sent.
	whole := content(t, directory, "state.json")
	put(t, whole[:100], directory, "state.json")
	mustSave(t, s, numbered(5), store.Written)
	expect(5, "gw-0005")

	// A removed record is not sent; the next identity begins at generation 1.
	s.Close()
	if err := os.RemoveAll(directory); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, store.Options{Directory: directory})
	mustSave(t, s, numbered(6), store.Written)
	expect(1, "gw-0006")

	cancel()
	for range records { // the channel is closed when the context ends
	}
}

func TestWatchSendsTheCurrentRecordFirst(t *testing.T) {
	directory := t.TempDir()
	fill(t, directory, 3)
	records, err := store.Watch(t.Context(), directory)
	if err != nil {
		t.Fatal(err)
	}
	if rec := <-records; rec.Generation != 3 {
		t.Errorf("generation %d", rec.Generation)
	}
}
