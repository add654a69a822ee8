package store_test

import (
	"bufio"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/store"
)

// actAsWriter is the main function of the helper process. With mode "die STEP FROM TO", it
// saves the records from FROM to TO and is killed before the given step, or never if STEP
// is 0; it prints the generation of each record that Save reported as saved.
func actAsWriter(mode string) int {
	var die, from, to int
	if mode == "service" {
		return actAsService()
	}
	var what string
	if _, err := fmt.Sscanf(mode, "starved %s %d %d", &what, &die, &from); err == nil {
		return actAsStarved(what, die, from)
	}
	if handled, code := actAsRenewer(mode); handled {
		return code
	}
	if _, err := fmt.Sscanf(mode, "save %d", &from); err == nil {
		return actAsSaver(from)
	}
	if _, err := fmt.Sscanf(mode, "die %d %d %d", &die, &from, &to); err != nil {
		return 2
	}
	o := store.Options{Directory: os.Getenv("DPSD_TEST_STATE"), RuntimeDirectory: os.Getenv("DPSD_TEST_RUNTIME")}
	count := 0
	s, err := store.OpenStepped(o, noon, func(string, string) error {
		if count++; count == die {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {} // wait for the signal
		}
		return nil
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for i := from; i <= to; i++ {
		if _, err := s.Save(numbered(i), noon); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		rec, _ := s.Current()
		fmt.Println(rec.Generation)
	}
	return 0
}

// actAsSaver is the helper process of the tests that trace it: it saves record n, again if
// the disk refuses it, and prints each result.
func actAsSaver(n int) int {
	s, err := store.Open(store.Options{Directory: os.Getenv("DPSD_TEST_STATE"), RuntimeDirectory: os.Getenv("DPSD_TEST_RUNTIME")}, noon)
	if err != nil {
		fmt.Println("open", err)
		return 0
	}
	for range 2 {
		if _, err := s.Save(numbered(n), noon); err != nil {
			fmt.Println("refused", err)
			continue
		}
		rec, _ := s.Current()
		fmt.Println("saved", rec.Generation)
		break
	}
	return 0
}

func writerProcess(mode, directory, runtime string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), helperVariable+"="+mode, "DPSD_TEST_STATE="+directory, "DPSD_TEST_RUNTIME="+runtime,
		"GORACE=atexit_sleep_ms=0") // otherwise, the race detector waits a second at each exit
	cmd.Stderr = os.Stderr
	return cmd
}

// readers read a state directory continuously, and check that the record is complete, does
// not disappear, and that its generation never decreases.
type readers struct {
	stop chan struct{}
	all  sync.WaitGroup
}

func startReaders(t *testing.T, directory string, n int) *readers {
	r := &readers{stop: make(chan struct{})}
	_, err := store.Read(directory)
	there := err == nil
	for range n {
		r.all.Go(func() {
			last, seen := uint64(0), there
			for {
				select {
				case <-r.stop:
					return
				default:
				}
				rec, err := store.Read(directory)
				switch {
				case errors.Is(err, store.ErrNoRecord) && !seen:
				case err != nil:
					t.Errorf("a reader after generation %d: %v", last, err)
					return
				case rec.Generation < last:
					t.Errorf("a reader saw generation %d after %d", rec.Generation, last)
					return
				default:
					seen, last = true, rec.Generation
				}
				if env, err := os.ReadFile(filepath.Join(directory, "state.env")); err == nil {
					if _, err := environmentFile(string(env)); err != nil || store.EnvironmentGeneration(env) == 0 {
						t.Errorf("a reader of state.env: %v in %q", err, env)
						return
					}
				}
			}
		})
	}
	return r
}

func (r *readers) end() {
	close(r.stop)
	r.all.Wait()
}

// situations are the cases in which a start or a Save writes.
var situations = []struct {
	say      string
	prepare  func(t *testing.T, directory, runtime string)
	least    uint64 // the oldest generation that a reader may find afterwards; 0 if there may be no record
	repaired uint64 // the generation that a start writes; 0 for none
	final    uint64 // the generation after the next start and Save
}{
	{"the first record", func(*testing.T, string, string) {}, 0, 0, 1},
	{"a change", func(t *testing.T, directory, _ string) {
		fill(t, directory, 2)
	}, 2, 0, 3},
	{"the repair of a damaged record", func(t *testing.T, directory, _ string) {
		fill(t, directory, 2)
		put(t, "damaged", directory, "state.json")
	}, 0, 3, 4},
	{"the repair of state.env", func(t *testing.T, directory, _ string) {
		fill(t, directory, 2)
		put(t, "DPSD_GENERATION=\"1\"\n", directory, "state.env")
	}, 2, 2, 3},
	{"adopting the record of the runtime directory", func(t *testing.T, directory, runtime string) {
		fill(t, directory, 2)
		other := quick(t)
		fill(t, other, 5)
		put(t, content(t, other, "state.json"), runtime, "state.json")
	}, 2, 5, 6},
}

// TestKilledAtEachStep kills a real process before each step that changes the disk, in each
// situation.
func TestKilledAtEachStep(t *testing.T) {
	long(t)
	for _, situation := range situations {
		t.Run(situation.say+": killed at any step, a reader finds the old record or the new one", func(t *testing.T) {
			for step := 1; ; step++ {
				directory, runtime := t.TempDir(), t.TempDir()
				situation.prepare(t, directory, runtime)
				damaged := content2(directory) == "damaged"
				var watching *readers
				if !damaged {
					watching = startReaders(t, directory, 1)
				}
				out, err := writerProcess(fmt.Sprintf("die %d 9 9", step), directory, runtime).Output()
				if watching != nil {
					watching.end()
				}
				rec, readErr := store.Read(directory)
				switch {
				case readErr == nil && rec.Generation >= situation.least:
				case situation.least == 0 && errors.Is(readErr, store.ErrNoRecord) && err != nil:
				case damaged && content2(directory) == "damaged" && err != nil: // killed before the repair
				default:
					t.Fatalf("step %d: after the kill: %v, generation %d", step, readErr, rec.Generation)
				}
				if err == nil { // it ended without being killed
					if step < 5 {
						t.Fatalf("only %d steps", step-1)
					}
					if got, _ := strconv.Atoi(strings.TrimSpace(string(out))); uint64(got) != situation.final {
						t.Errorf("the whole run ends with generation %d, want %d", got, situation.final)
					}
					return
				}
				s := mustOpen(t, store.Options{Directory: directory, RuntimeDirectory: runtime})
				if _, err := s.Save(numbered(9), noon); err != nil {
					t.Fatal(err)
				}
				after := mustRead(t, directory)
				if after.DeviceID != "gw-0009" || after.Generation < max(rec.Generation, situation.final) || after.Generation > situation.final+2 {
					t.Errorf("step %d: the next start ends with generation %d after %d, want about %d", step, after.Generation, rec.Generation, situation.final)
				}
				if got := content(t, directory, "state.env"); got != string(store.Environment(after)) {
					t.Errorf("step %d: state.env is %q", step, got)
				}
				for _, name := range names(t, directory) {
					if strings.HasPrefix(name, ".") {
						t.Errorf("step %d: %s was left", step, name)
					}
				}
				s.Close()
			}
		})
	}
}

func content2(directory string) string {
	data, _ := os.ReadFile(filepath.Join(directory, "state.json"))
	return string(data)
}

// fill writes the records 1 to n.
func fill(t *testing.T, directory string, n int) {
	t.Helper()
	s := mustOpen(t, store.Options{Directory: directory})
	for i := range n {
		mustSave(t, s, numbered(i+1), store.Written)
	}
	s.Close()
}

// TestPromise2TheStateFileIsAlwaysWhole kills a process that writes continuously at random
// times, while readers check the files: 1,000 times in CI.
func TestPromise2TheStateFileIsAlwaysWhole(t *testing.T) {
	long(t)
	kills := 200
	if thorough() {
		kills = 1000
	}
	writer := filepath.Join(t.TempDir(), "writer")
	if out, err := exec.Command("go", "build", "-buildvcs=false", "-o", writer, "./testdata/writer").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	directory := quick(t)
	fill(t, directory, 2)
	watching := startReaders(t, directory, 1)
	defer watching.end()
	chance := rand.New(rand.NewPCG(1, 2))
	halfway, saves := 0, uint64(0)
	for range kills {
		before := mustRead(t, directory)
		cmd := exec.Command(writer, directory, strconv.Itoa(deviceNumber(t, before)+1))
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		saved := before.Generation
		lines := bufio.NewScanner(out)
		for n := chance.IntN(3); n > 0 && lines.Scan(); n-- {
			saved, _ = strconv.ParseUint(lines.Text(), 10, 64)
		}
		// Somewhere within the next save, or within the start.
		for until := time.Now().Add(time.Duration(chance.IntN(2_000_000))); time.Now().Before(until); {
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() { // its output before it was killed
			saved, _ = strconv.ParseUint(lines.Text(), 10, 64)
		}
		_ = cmd.Wait()
		rec := mustRead(t, directory)
		if rec.Generation < saved {
			t.Fatalf("generation %d was reported as saved, the disk has %d", saved, rec.Generation)
		}
		if prev, err := store.Parse([]byte(content(t, directory, "state.json.prev"))); err != nil || prev.Generation+1 < rec.Generation {
			t.Fatalf("state.json.prev beside generation %d: generation %d, %v", rec.Generation, prev.Generation, err)
		}
		left := 0
		for _, name := range names(t, directory) {
			if strings.HasPrefix(name, ".") {
				left++
			}
		}
		if left > 1 {
			t.Fatalf("temporary files accumulate: %q", names(t, directory))
		}
		halfway += left
		saves += rec.Generation - before.Generation
	}
	t.Logf("%d kills, %d of them between the creation of a temporary file and its rename; %d saves", kills, halfway, saves)
	if halfway < kills/50 || saves < uint64(kills)/2 {
		t.Error("almost no kill interrupted a write: the test is ineffective")
	}
	s := mustOpen(t, store.Options{Directory: directory})
	mustSave(t, s, numbered(0), store.Written)
	for _, name := range names(t, directory) {
		if strings.HasPrefix(name, ".") {
			t.Errorf("%s was left", name)
		}
	}
}

// thorough reports whether all cases are to be tested.
func thorough() bool { return os.Getenv("CI") == "true" }

func deviceNumber(t *testing.T, rec store.Record) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimPrefix(rec.DeviceID, "gw-"))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestConcurrentReaders runs readers, a watcher, and the programs of docs/state.md
// concurrently with 1000 changes.
func TestConcurrentReaders(t *testing.T) {
	const changes = 1000
	directory := quick(t)
	s := mustOpen(t, store.Options{Directory: directory})
	mustSave(t, s, numbered(1), store.Written)
	watching := startReaders(t, directory, 4)
	records, err := store.Watch(t.Context(), directory)
	if err != nil {
		t.Fatal(err)
	}
	var last store.Record
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for rec := range records {
			if rec.Generation <= last.Generation || rec.DeviceID != fmt.Sprintf("gw-%04d", rec.Generation) {
				t.Errorf("the watcher got generation %d of %s after %d", rec.Generation, rec.DeviceID, last.Generation)
			}
			if last = rec; rec.Generation == changes {
				return
			}
		}
	}()
	programs := follow(t, directory, changes)
	for _, f := range programs {
		<-f.up
	}
	for i := 2; i <= changes; i++ {
		if rec := mustSave(t, s, numbered(i), store.Written); rec.Generation != uint64(i) {
			t.Fatalf("generation %d, want %d", rec.Generation, i)
		}
	}
	<-watched
	watching.end()
	for _, f := range programs {
		<-f.done
		t.Logf("%s has seen %d of %d generations", f.name, f.seen, changes)
	}
}

// quick returns a directory in memory, where fsync takes no time.
func quick(t *testing.T) string {
	t.Helper()
	directory, err := os.MkdirTemp("/dev/shm", "dpsd")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(directory) })
	return directory
}

func BenchmarkSaveUnchanged(b *testing.B) {
	s, err := store.Open(store.Options{Directory: b.TempDir()}, noon)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	rec := sample()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Save(rec, noon); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSaveChanged(b *testing.B) {
	s, err := store.Open(store.Options{Directory: b.TempDir()}, noon)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		n++
		if _, err := s.Save(numbered(n), noon.Add(time.Duration(n)*time.Second)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRead(b *testing.B) {
	directory := b.TempDir()
	s, err := store.Open(store.Options{Directory: directory}, noon)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Save(sample(), noon); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := store.Read(directory); err != nil {
			b.Fatal(err)
		}
	}
}
