package daemon

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/control"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/simulator"
)

// configuration is a dpsd.toml as the daemon reads it.
type configuration struct {
	sync.Mutex
	err     error     // why the file cannot be used
	changed *Settings // its content, until it is applied
	reads   int
}

var errTypo = errors.New("/etc/dpsd/dpsd.toml:2:1: dps.id_scop: unknown key")

// reloads returns the configuration that the gateway reads after each value on hangup.
func (g *gateway) reloads() (hangup chan<- os.Signal, file *configuration) {
	signals := make(chan os.Signal, 1)
	file = &configuration{}
	g.Hangup, g.Reload = signals, file.read
	return signals, file
}

func (c *configuration) read() (*Settings, error) {
	c.Lock()
	defer c.Unlock()
	c.reads++
	if c.err != nil {
		return nil, c.err
	}
	changed := c.changed
	c.changed = nil
	return changed, nil
}

// fails sets the error of reading the file; nil means that the file is valid.
func (c *configuration) fails(err error) {
	c.Lock()
	defer c.Unlock()
	c.err = err
}

// contains sets what the next successful reading returns.
func (c *configuration) contains(changed *Settings) {
	c.Lock()
	defer c.Unlock()
	c.changed = changed
}

func (c *configuration) readings() int {
	c.Lock()
	defer c.Unlock()
	return c.reads
}

// mistaken returns a gateway with a mistake in its registration ID, and the settings without
// the mistake.
func mistaken(t *testing.T, rules ...simulator.Rule) (g *gateway, file *configuration, right *Settings) {
	t.Helper()
	rules = append(rules, simulator.Rule{On: simulator.OnRegister, RegistrationID: "typo", Status: 404})
	g, file = newGateway(t, rules...), &configuration{}
	settings := g.Settings
	g.Settings.RegistrationID = attest.RegistrationID{Template: "typo"}
	g.Settings.Credentials = []attest.Credential{g.key("typo.key", g.sim.DeviceKey("typo"))}
	g.ConfigurationFile, g.Reload = "/etc/dpsd/dpsd.toml", file.read
	g.watching(nil)
	return g, file, &settings
}

// reconfigured sends what the watch of the configuration file sends.
func (g *gateway) reconfigured() {
	select {
	case g.configured <- struct{}{}:
	default:
	}
}

func TestBeforeREADYACorrectedConfigurationIsAppliedWithoutAReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, file, right := mistaken(t)
		g.run()
		refused := g.until("fault", 1)
		time.Sleep(time.Minute)
		file.contains(right)
		g.reconfigured()
		if took := g.within(time.Hour, "assigned", 1); took != time.Minute+refused+settle+6*time.Second {
			t.Errorf("assigned %s after the start, want 6 s and %s after the correction, which came after %s", took, settle, time.Minute+refused)
		}
		synctest.Wait()
		if n, _ := g.notified("RELOADING=1"); n != 0 {
			t.Error("RELOADING=1 was sent, which makes a unit that starts active")
		}
		if n, _ := g.notified("READY=1\nSTATUS=Assigned to "); n != 1 {
			t.Errorf("READY=1 %d times: %v", n, g.notes)
		}
		g.wantAssigned()
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}

func TestBeforeREADYTheStatusNamesAnInvalidConfigurationAndTheOldOneRemainsInEffect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, file, right := mistaken(t)
		g.run()
		g.until("fault", 1)
		synctest.Wait()
		before := strings.TrimPrefix(g.lastNote(), "STATUS=")
		file.fails(errTypo)
		g.reconfigured()
		time.Sleep(settle)
		synctest.Wait()
		const refusal = "Configuration refused: /etc/dpsd/dpsd.toml:2:1: dps.id_scop: unknown key; the previous one stays in effect. "
		lead, cause, _ := strings.Cut(before, "UTC. ")
		if last, want := g.lastNote(), "STATUS="+lead+"UTC. "+refusal+cause; last != want {
			t.Errorf("the status is %q, want %q", last, want)
		}
		// The status still names it while attempts continue.
		g.until("fault", 4)
		synctest.Wait()
		if last := g.lastNote(); !strings.HasPrefix(last, "STATUS=Next attempt at ") || !strings.Contains(last, "UTC. "+refusal+"Last fault: "+string(fault.EnrollmentNotFound)) {
			t.Errorf("the status after three more attempts is %q", last)
		}
		if n := g.log.FilterMessage("reload-refused").Len(); n != 1 {
			t.Errorf("the log names it %d times", n)
		}
		if st, _ := g.notified("READY=1"); st != 0 {
			t.Error("READY=1 was sent")
		}
		// The status no longer names it after the change has been reverted.
		file.fails(nil)
		g.reconfigured()
		time.Sleep(settle)
		synctest.Wait()
		if last := g.lastNote(); strings.Contains(last, "refused: ") || !strings.Contains(last, string(fault.EnrollmentNotFound)) {
			t.Errorf("the status after the change was reverted is %q", last)
		}
		file.contains(right)
		g.reconfigured()
		g.within(time.Hour, "assigned", 1)
		synctest.Wait()
		if last := g.lastNote(); !strings.Contains(last, "STATUS=Assigned to ") {
			t.Errorf("the status after the assignment is %q", last)
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}

func TestAnAssignmentUnderTheOldConfigurationEndsTheReportOfTheInvalidOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, simulator.Rule{On: simulator.OnRegister, Status: 503, RetryAfter: "none", Times: 3})
		file := &configuration{err: errTypo}
		g.ConfigurationFile, g.Reload = "/etc/dpsd/dpsd.toml", file.read
		g.Settings.Interval = time.Hour
		g.watching(nil)
		g.run()
		g.within(time.Hour, "assigned", 1)
		synctest.Wait()
		if n, _ := g.notified("Configuration refused: "); n == 0 {
			t.Error("the status never named the configuration")
		}
		if last := g.lastNote(); !strings.HasPrefix(last, "READY=1\nSTATUS=Assigned to ") {
			t.Errorf("the status is %q", last)
		}
		reports, _ := g.notified("Configuration refused: ")
		if err := g.sim.SetScenario(&simulator.Scenario{Rules: []simulator.Rule{{On: simulator.OnRegister, Status: 503, Times: 1}}}); err != nil {
			t.Fatal(err)
		}
		g.until("assigned", 2)
		if n, _ := g.notified("Configuration refused: "); n != reports || len(g.faults()) != 4 {
			t.Errorf("after READY the status names it %d times more; faults %v", n-reports, g.faults())
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}

func TestAfterREADYAChangedConfigurationWaitsForAReload(t *testing.T) {
	for _, policy := range []Policy{PolicyAlways, PolicyVerify, PolicyIfNeeded} {
		t.Run(string(policy), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := restarted(t)
				file := &configuration{}
				g.Settings.OnBoot = policy
				g.ConfigurationFile, g.Reload = "/etc/dpsd/dpsd.toml", file.read
				g.watching(nil)
				g.run()
				if policy == PolicyAlways {
					g.within(time.Hour, "assigned", 1)
				} else {
					g.until("published", 1)
				}
				synctest.Wait()
				if g.configures == nil || g.configures.Err() == nil {
					t.Error("the file is still watched")
				}
				reads := file.readings()
				file.fails(errTypo)
				g.reconfigured()
				time.Sleep(time.Hour)
				if n := file.readings() - reads; n != 0 {
					t.Errorf("the file was read %d times", n)
				}
				if n, _ := g.notified("STATUS=Configuration"); n != 0 {
					t.Errorf("the status mentions the file: %v", g.notes)
				}
				if err := g.end(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestAConfigurationThatIsWrittenInSeveralStepsIsReadOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, file, right := mistaken(t)
		g.run()
		g.until("fault", 1)
		time.Sleep(time.Minute)
		reads := file.readings()
		file.fails(errTypo) // a partly written file
		for range 10 {
			g.reconfigured()
			time.Sleep(settle / 2)
		}
		file.contains(right)
		file.fails(nil)
		g.reconfigured()
		g.within(time.Hour, "assigned", 1)
		if n := file.readings() - reads; n != 1 {
			t.Errorf("the file was read %d times", n)
		}
		if n := g.log.FilterMessage("reload-refused").Len(); n != 0 {
			t.Error("the log reports a partly written file")
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}

func TestATouchedConfigurationTriggersNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, file, _ := mistaken(t)
		s := g.supervised()
		g.until("fault", 1)
		due, entries := s.statusDocument().Next.At, g.log.Len()
		lines, _ := g.notified("STATUS=")
		for range 20 {
			g.reconfigured()
			time.Sleep(time.Second)
		}
		if next := s.statusDocument().Next; next == nil || !next.At.Equal(due) {
			t.Errorf("the next attempt is due at %v, and was at %s", next, due)
		}
		if file.readings() < 20 || g.log.Len() != entries {
			t.Errorf("%d readings, %d log entries", file.readings(), g.log.Len()-entries)
		}
		if n, _ := g.notified("STATUS="); n != lines {
			t.Errorf("the status changed %d times", n-lines)
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}

func TestAContinuouslyChangingConfigurationCausesNoTraffic(t *testing.T) {
	for name, change := range map[string]time.Duration{"faster than it comes to rest": settle / 2, "slower": 2 * settle} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, file, _ := mistaken(t)
				wrong := g.Settings
				g.run()
				for range int(time.Minute / change) {
					file.contains(&wrong)
					g.reconfigured()
					time.Sleep(change)
				}
				var last time.Time
				registers := simulator.Summarize(g.sim.Log()).Registers
				for _, at := range registers {
					if gap := at.Sub(last); gap < changeGap {
						t.Errorf("registers %s apart", gap)
					}
					last = at
				}
				if len(registers) < 3 {
					t.Errorf("%d registers in a minute of changes", len(registers))
				}
				if err := g.end(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestAChangedConfigurationShortensNoRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, simulator.Rule{On: simulator.OnRegister, Status: 429, RetryAfter: "600", Times: 1})
		file := &configuration{}
		g.ConfigurationFile, g.Reload = "/etc/dpsd/dpsd.toml", file.read
		g.watching(nil)
		g.run()
		g.until("fault", 1)
		changed := g.Settings
		file.contains(&changed)
		g.reconfigured()
		if took := g.within(time.Hour, "assigned", 1); took != 606*time.Second {
			t.Errorf("assigned after %s, want the 600 s of the 429 and 6 s", took)
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}

func TestAChangedConfigurationCancelsTheAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, file, right := mistaken(t, simulator.Rule{On: simulator.OnConnect, RegistrationID: "typo", Silent: true})
		g.run()
		g.until("connected", 1)
		time.Sleep(3 * time.Second)
		file.contains(right)
		g.reconfigured()
		if took := g.within(time.Hour, "assigned", 1); took != changeGap+6*time.Second {
			t.Errorf("assigned after %s, want %s after the previous contact and 6 s", took, changeGap)
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
		g.wantFaults()
	})
}

func TestAConfigurationThatCannotBeReadOrWatchedIsReadAgain(t *testing.T) {
	t.Run("the cause disappears without a change of the file", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g, file, right := mistaken(t)
			g.run()
			g.until("fault", 1)
			file.contains(right)
			file.fails(errors.New("open /etc/dpsd/dpsd.toml: too many open files"))
			g.reconfigured()
			time.Sleep(time.Minute)
			began := time.Now()
			file.fails(nil)
			if took := g.within(time.Hour, "assigned", 1) - began.Sub(g.start); took > changeGap+6*time.Second {
				t.Errorf("assigned %s after the file could be read", took)
			}
			if err := g.end(); err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("no more watches are available", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g, file, right := mistaken(t)
			g.Watch = func(context.Context, ...string) (<-chan struct{}, error) {
				return nil, errors.New("watch: inotify_init1: too many open files (fs.inotify.max_user_instances)")
			}
			g.run()
			g.until("fault", 1)
			time.Sleep(time.Minute)
			if n := g.log.FilterMessage("watch-failed").Len(); n == 0 {
				t.Error("no log entry reports that files are not watched")
			}
			began := time.Now()
			file.contains(right)
			if took := g.within(time.Hour, "assigned", 1) - began.Sub(g.start); took > changeGap+6*time.Second {
				t.Errorf("assigned %s after the correction", took)
			}
			if err := g.end(); err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("the file changed before it was watched", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g, file, right := mistaken(t)
			file.contains(right)
			g.run()
			if took := g.within(time.Hour, "assigned", 1); took != changeGap+6*time.Second {
				t.Errorf("assigned after %s", took)
			}
			if err := g.end(); err != nil {
				t.Error(err)
			}
		})
	})
}

func TestOnceAppliesACorrectedConfigurationToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, file, right := mistaken(t, simulator.Rule{On: simulator.OnConnect, RegistrationID: "typo", Connack: code(3)})
		g.Once, g.Timeout = true, time.Hour
		g.run()
		g.until("fault", 1)
		file.fails(errTypo) // an invalid configuration does not end Run
		g.reconfigured()
		g.until("fault", 3)
		file.contains(right)
		file.fails(nil)
		g.reconfigured()
		if err := <-g.done; err != nil {
			t.Errorf("Run returned %v", err)
		}
		g.wantAssigned()
		if g.configures.Err() == nil {
			t.Error("the file is still watched")
		}
		g.sim.Close()
	})
}

func TestTheStatusDocumentSaysWhyTheConfigurationWasRefusedUntilItIsAccepted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file, reload := &configuration{}, make(chan os.Signal)
		g := newGateway(t, simulator.Rule{On: simulator.OnRegister, Status: 401, Times: 1})
		g.ConfigurationFile, g.Reload, g.Hangup = "/etc/dpsd/dpsd.toml", file.read, reload
		g.Settings.Configuration = &control.Configuration{File: g.ConfigurationFile, Fingerprint: "sha256:1"}
		g.watching(nil)
		s := g.supervised()
		hold := func(when, want string) {
			t.Helper()
			if c := s.statusDocument().Configuration; c == nil || c.Refused != want || c.Fingerprint != "sha256:1" {
				t.Errorf("%s: %+v", when, c)
			}
		}
		g.until("fault", 1)
		hold("before it was refused", "")
		file.fails(errTypo)
		g.reconfigured()
		g.until("reload-refused", 1)
		hold("before READY", errTypo.Error())
		g.until("assigned", 1)
		hold("at READY", errTypo.Error())
		file.fails(nil)
		reload <- syscall.SIGHUP
		g.until("reloaded", 1)
		hold("when the file was put back and read again", "")
		time.Sleep(time.Hour)
		file.fails(errTypo)
		reload <- syscall.SIGHUP
		g.until("reload-refused", 2)
		hold("after a refused reload", errTypo.Error())
		if g.Settings.Configuration.Refused != "" {
			t.Error("the configuration that dpsd works with has changed")
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}
