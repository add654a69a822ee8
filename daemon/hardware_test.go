package daemon

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/certificate"
	"github.com/dpsd-project/dpsd/classify"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/pace"
	"github.com/dpsd-project/dpsd/signer"
	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/simulator/enroll"
	"github.com/dpsd-project/dpsd/tpm"
	"github.com/dpsd-project/dpsd/tpm/tpmtest"
	"github.com/dpsd-project/dpsd/transport"
)

// hardwired is a gateway with a TPM.
type hardwired struct {
	*gateway
	tpm *tpmtest.TPM
}

// newHardwired returns a gateway whose device certificate has a TPM key.
func newHardwired(t *testing.T, a tpm.Algorithm, rules ...simulator.Rule) hardwired {
	t.Helper()
	h := hardwired{newGateway(t, rules...), new(tpmtest.TPM)}
	h.Secrets.TPM = &tpm.Device{Open: h.tpm.Open}
	h.Settings.Credentials = []attest.Credential{h.tpmCredential(a)}
	return h
}

// inTPM gives a gateway a device certificate with a TPM key.
func (g *gateway) inTPM() *tpmtest.TPM {
	h := hardwired{g, new(tpmtest.TPM)}
	h.Secrets.TPM = &tpm.Device{Open: h.tpm.Open}
	h.Settings.Credentials = []attest.Credential{h.tpmCredential(tpm.P256)}
	return h.tpm
}

// tpmCredential creates a TPM key, and makes the service trust the authority that issues a
// device certificate for it.
func (h hardwired) tpmCredential(a tpm.Algorithm) attest.Credential {
	h.t.Helper()
	text, err := h.Secrets.TPM.Create(context.Background(), a, tpm.Owner)
	if err != nil {
		h.t.Fatal(err)
	}
	f, err := tpm.Parse(text)
	if err != nil {
		h.t.Fatal(err)
	}
	h.write("device-key.pem", string(text))
	h.write("device.pem", h.trusted(f.Public()))
	return attest.X509{
		Certificate: attest.Reference{File: filepath.Join(h.dir, "device.pem")},
		PrivateKey:  attest.Reference{File: filepath.Join(h.dir, "device-key.pem")},
	}
}

// trusted returns a device certificate that the service trusts.
func (g *gateway) trusted(public crypto.PublicKey) string {
	g.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		g.t.Fatal(err)
	}
	sign := func(name string, parent *x509.Certificate, public crypto.PublicKey) *x509.Certificate {
		template := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: g.start.AddDate(-1, 0, 0), NotAfter: g.start.AddDate(20, 0, 0),
			IsCA: parent == nil, BasicConstraintsValid: true,
		}
		if parent == nil {
			parent = template
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
		if err != nil {
			g.t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			g.t.Fatal(err)
		}
		return c
	}
	text := func(c *x509.Certificate) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	authority := sign("Plant CA", nil, key.Public())
	e := *g.sim.Enrollments()
	e.Groups = append(slices.Clone(e.Groups), enroll.Group{
		Name: "plant-" + rand.Text(), Attestation: enroll.Attestation{Type: "x509", CA: text(authority)},
	})
	if err := g.sim.SetEnrollments(&e); err != nil {
		g.t.Fatal(err)
	}
	return text(sign(device, authority, public))
}

// stopped ends the daemon, and checks that nothing remains in the TPM.
func (h hardwired) stopped() {
	h.t.Helper()
	if err := h.end(); err != nil {
		h.t.Error(err)
	}
	h.wantReleased()
}

func (h hardwired) wantReleased() {
	h.t.Helper()
	synctest.Wait()
	if h.tpm.Loaded() != 0 || h.tpm.Connections() != 0 {
		h.t.Errorf("%d keys are loaded, and %d connections are open", h.tpm.Loaded(), h.tpm.Connections())
	}
}

func TestAGatewayIsAssignedWithATPMKey(t *testing.T) {
	for _, a := range []tpm.Algorithm{tpm.P256, tpm.P384, tpm.RSA2048} {
		for _, p := range []transport.Protocol{transport.MQTT, transport.WebSocket} {
			for _, version := range []string{"1.2", "1.3"} {
				t.Run(string(a)+" over "+string(p)+" with TLS "+version, func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						h := newHardwired(t, a, simulator.Rule{On: simulator.OnTLS, TLSMax: version})
						h.Settings.Dialer.Protocols = []transport.Protocol{p}
						h.run()
						h.until("assigned", 1)
						h.wantAssigned()
						h.wantFaults()
						h.wantReleased() // while dpsd continues to run
						if n, _ := h.notified("STATUS=Waiting for the TPM (x509 file:"); n != 1 {
							t.Errorf("STATUS= has mentioned the TPM %d times", n)
						}
						h.stopped()
					})
				})
			}
		}
	}
}

// The keys in this test are in swtpm, a complete TPM in a process of its own.
func TestAGatewayIsAssignedWithKeysInSwtpm(t *testing.T) {
	software := tpmtest.Start(t)
	for _, kind := range []string{"symmetric key", "certificate"} {
		for _, p := range []transport.Protocol{transport.MQTT, transport.WebSocket} {
			t.Run(kind+" over "+string(p), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					h := hardwired{newGateway(t), new(tpmtest.TPM)}
					h.Secrets.TPM = &tpm.Device{Path: software.Socket}
					h.Settings.Dialer.Protocols = []transport.Protocol{p}
					if kind == "certificate" {
						h.Settings.Credentials = []attest.Credential{h.tpmCredential(tpm.P256)}
					} else {
						key, err := attest.DecodeKey([]byte(h.sim.DeviceKey(device)))
						if err != nil {
							t.Fatal(err)
						}
						text, err := h.Secrets.TPM.Seal(context.Background(), key, tpm.Owner)
						if err != nil {
							t.Fatal(err)
						}
						h.Settings.Credentials = []attest.Credential{h.key("device.tss2", string(text))}
					}
					h.run()
					h.until("assigned", 1)
					h.wantAssigned()
					h.wantFaults()
					if err := h.end(); err != nil {
						t.Error(err)
					}
				})
			})
		}
	}
}

func TestAChipWithTheLongestSaltAuthenticatesWithPKCS1(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHardwired(t, tpm.RSA2048)
		h.tpm.LongSalt = true
		h.run()
		h.until("assigned", 1)
		h.wantFaults()
		h.stopped()
	})
}

// In each row, the TPM fails, and the gateway is later assigned without a restart of dpsd.
func TestEachTPMFailureHasAFaultAndDpsdRecoversFromIt(t *testing.T) {
	always := func(command tpm2.TPMCC, rc tpm2.TPMRC) func(tpm2.TPMCC, int) (tpm2.TPMRC, error) {
		return func(c tpm2.TPMCC, _ int) (tpm2.TPMRC, error) {
			if c == command {
				return rc, nil
			}
			return 0, nil
		}
	}
	sleeping := func(command tpm2.TPMCC, d time.Duration) func(tpm2.TPMCC, int) (tpm2.TPMRC, error) {
		return func(c tpm2.TPMCC, _ int) (tpm2.TPMRC, error) {
			if c == command {
				time.Sleep(d)
			}
			return 0, nil
		}
	}
	unplugged := func(command tpm2.TPMCC) func(tpm2.TPMCC, int) (tpm2.TPMRC, error) {
		return func(c tpm2.TPMCC, _ int) (tpm2.TPMRC, error) {
			if c == command {
				return 0, io.ErrUnexpectedEOF
			}
			return 0, nil
		}
	}
	mended := func(h hardwired) { h.tpm.Before, h.tpm.Absent = nil, false }
	for _, row := range []struct {
		name   string
		broken func(hardwired)
		code   fault.Code
		mend   func(hardwired)
		within time.Duration // until the assignment
		most   int           // attempts in the hour before
	}{
		{"absent", func(h hardwired) { h.tpm.Absent = true }, fault.TPMUnavailable, mended, 5 * time.Minute, 30},
		{"busy", func(h hardwired) { h.tpm.Before = always(tpm2.TPMCCCreatePrimary, tpm2.TPMRCRetry) }, fault.TPMUnavailable, mended, 6 * time.Minute, 30},
		{"too slow", func(h hardwired) { h.tpm.Before = sleeping(tpm2.TPMCCCreatePrimary, 40*time.Second) }, fault.TPMUnavailable, mended, 6 * time.Minute, 30},
		{"full of other keys", func(h hardwired) { h.tpm.Before = always(tpm2.TPMCCLoad, tpm2.TPMRCObjectMemory) }, fault.TPMUnavailable, mended, 6 * time.Minute, 30},
		{"locked", func(h hardwired) { h.tpm.Before = always(tpm2.TPMCCLoad, tpm2.TPMRCLockout) }, fault.TPMLockedOut, mended, 70 * time.Minute, 20},
		{"locked for signatures", func(h hardwired) { h.tpm.Before = always(tpm2.TPMCCSign, tpm2.TPMRCLockout) }, fault.TPMLockedOut, mended, 70 * time.Minute, 20},
		{"unplugged while the key is loaded", func(h hardwired) { h.tpm.Before = unplugged(tpm2.TPMCCCreatePrimary) }, fault.TPMUnavailable, mended, 5 * time.Minute, 30},
		{"reset", func(h hardwired) { h.tpm.Reset() }, fault.TPMKeyUnusable, func(h hardwired) { h.tpmCredential(tpm.P256) }, 70 * time.Minute, 20},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHardwired(t, tpm.P256)
				row.broken(h)
				h.run()
				h.until("fault", 1)
				time.Sleep(time.Hour)
				synctest.Wait()
				faults := h.faults()
				if len(faults) < 2 || len(faults) > row.most {
					t.Errorf("%d attempts in an hour, want 2 to %d", len(faults), row.most)
				}
				for _, code := range faults {
					if code != string(row.code) {
						t.Fatalf("%v, want only %s", faults, row.code)
					}
				}
				if entry := h.log.FilterMessage("fault").All()[0].ContextMap(); entry["stage"] != "credential" || !strings.HasPrefix(entry["credential"].(string), "x509 file:") {
					t.Errorf("the fault is %v", entry)
				}
				row.mend(h)
				h.within(row.within, "assigned", 1)
				h.stopped()
			})
		})
	}
}

func TestATPMThatIsUnpluggedDuringAHandshakeIsAFaultOfTheCredential(t *testing.T) {
	for _, version := range []string{"1.2", "1.3"} {
		synctest.Test(t, func(t *testing.T) {
			h := newHardwired(t, tpm.P256, simulator.Rule{On: simulator.OnTLS, TLSMax: version})
			h.Settings.Dialer.Protocols = []transport.Protocol{transport.MQTT, transport.WebSocket}
			signed := h.tpm.Count(tpm2.TPMCCSign)
			h.tpm.Before = func(c tpm2.TPMCC, n int) (tpm2.TPMRC, error) {
				if c == tpm2.TPMCCSign && n == signed+1 {
					return 0, io.ErrUnexpectedEOF
				}
				return 0, nil
			}
			h.run()
			h.until("assigned", 1)
			h.wantFaults(fault.TPMUnavailable)
			for _, entry := range h.log.FilterMessage("fault").All() {
				if stage := entry.ContextMap()["stage"]; stage != "credential" {
					t.Errorf("TLS %s: the stage is %v", version, stage)
				}
			}
			if err := h.end(); err != nil {
				t.Error(err)
			}
			if n := h.tpm.Connections(); n != 0 { // the end of the connection, or the unplugging, has removed the key
				t.Errorf("TLS %s: %d connections are open", version, n)
			}
		})
	}
}

func TestTheNextCredentialTakesOverIfTheTPMKeyIsUnusable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHardwired(t, tpm.P256)
		h.Settings.Credentials = append(h.Settings.Credentials, h.key("device.key", h.sim.DeviceKey(device)))
		h.tpm.Reset()
		h.run()
		h.until("assigned", 1)
		if lane := h.log.FilterMessage("fault").All()[0].ContextMap()["lane"]; lane != "next-credential" {
			t.Errorf("the retry class is %v", lane)
		}
		h.wantFaults(fault.TPMKeyUnusable)
		h.stopped()
	})
}

func TestTheNextCredentialTakesOverIfTheTPMIsNotAvailableForHalfAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHardwired(t, tpm.P256)
		h.Settings.Credentials = append(h.Settings.Credentials, h.key("device.key", h.sim.DeviceKey(device)))
		h.tpm.Absent = true
		h.run()
		time.Sleep(29 * time.Second)
		synctest.Wait()
		if n := h.log.FilterMessage("assigned").Len(); n != 0 {
			t.Error("the gateway is assigned, although the TPM may still appear")
		}
		h.within(time.Minute, "assigned", 1)
		faults := h.log.FilterMessage("fault").All()
		for i, entry := range faults {
			want := "transient"
			if i == len(faults)-1 {
				want = "next-credential"
			}
			if fields := entry.ContextMap(); fields["fault"] != string(fault.TPMUnavailable) || fields["lane"] != want {
				t.Errorf("fault %d of %d is %v, in the class %v", i+1, len(faults), fields["fault"], fields["lane"])
			}
		}
		h.stopped()
	})
}

func TestATPMThatAppearsAfterTheNextCredentialWasRefusedIsUsedImmediately(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHardwired(t, tpm.P256)
		h.Settings.Credentials = append(h.Settings.Credentials, h.key("device.key", strings.Repeat("A", 42)+"8="))
		h.tpm.Absent = true
		appeared := make(chan struct{}, 1)
		h.Watch = func(_ context.Context, paths ...string) (<-chan struct{}, error) {
			if slices.Equal(paths, []string{tpm.Path}) {
				return appeared, nil
			}
			return nil, nil
		}
		h.run()
		h.until("fault", 30) // the delays have grown to many minutes
		time.Sleep(15 * time.Second)
		h.tpm.Absent = false
		appeared <- struct{}{}
		h.within(10*time.Second, "assigned", 1)
		h.stopped()
	})
}

func TestATPMThatAppearsWhileTheNextCredentialWaitsIsUsedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHardwired(t, tpm.P256, simulator.Rule{On: simulator.OnRegister, Status: 503, RetryAfter: "none"})
		h.Settings.Credentials = append(h.Settings.Credentials, h.key("device.key", h.sim.DeviceKey(device)))
		h.tpm.Absent = true
		appeared := make(chan struct{}, 1)
		h.Watch = func(_ context.Context, paths ...string) (<-chan struct{}, error) {
			if slices.Equal(paths, []string{tpm.Path}) {
				return appeared, nil
			}
			return nil, nil
		}
		h.run()
		h.until("fault", 20)
		last := func() string {
			all := h.log.FilterMessage("fault").All()
			return all[len(all)-1].ContextMap()["credential"].(string)
		}
		if used := last(); !strings.HasPrefix(used, "symmetric-key") {
			t.Errorf("without the TPM, dpsd uses %s", used)
		}
		time.Sleep(15 * time.Second)
		h.tpm.Absent = false
		attempts := len(h.faults())
		appeared <- struct{}{}
		h.within(10*time.Second, "fault", attempts+1)
		if used := last(); !strings.HasPrefix(used, "x509") {
			t.Errorf("with the TPM, dpsd uses %s", used)
		}
		h.stopped()
	})
}

func TestIfNoTPMKeyIsAvailableTheNextRoundBeginsWithTheFirstOne(t *testing.T) {
	late := fault.Fault{Code: fault.TPMUnavailable, Class: fault.Transient, Stage: fault.StageCredential}
	var c credentials
	c.failed(late, pace.LaneTransient, 2)
	c.failed(late, pace.LaneNext, 2)
	if c.current != 1 || c.left(2) {
		t.Errorf("after half a minute, the credential is %d", c.current)
	}
	c.failed(late, pace.LaneTransient, 2)
	if c.current != 0 || !c.left(2) {
		t.Errorf("after both credentials failed, the credential is %d", c.current)
	}
	c.failed(fault.Fault{Code: fault.ConnackRefused, Class: fault.Credential, Stage: fault.StageConnect}, pace.LaneNext, 2)
	c.failed(late, pace.LaneTransient, 2)
	if c.current != 1 {
		t.Error("after a short delay, dpsd uses a credential that DPS has refused")
	}
}

func TestWhileDpsdWaitsItDoesNotUseTheTPM(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHardwired(t, tpm.P256)
		h.Settings.Credentials = append(h.Settings.Credentials, h.key("device.key", "not a key"))
		h.tpm.Reset()
		h.run()
		h.until("fault", 2) // the input is now checked every ten seconds
		used, attempts := h.tpm.Count(tpm2.TPMCCLoad), len(h.faults())
		time.Sleep(10 * time.Hour)
		synctest.Wait()
		used, attempts = h.tpm.Count(tpm2.TPMCCLoad)-used, (len(h.faults())-attempts)/2
		if used == 0 || used != attempts {
			t.Errorf("a key was loaded %d times for %d attempts", used, attempts)
		}
		h.write("device.key", h.sim.DeviceKey(device))
		h.within(11*time.Second, "assigned", 1)
		h.stopped()
	})
}

func TestATPMThatAppearsLateIsUsedImmediately(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHardwired(t, tpm.P256)
		h.tpm.Absent = true
		appeared := make(chan struct{}, 1)
		watches := 0
		h.Watch = func(ctx context.Context, paths ...string) (<-chan struct{}, error) {
			if slices.Equal(paths, []string{tpm.Path}) {
				watches++
				context.AfterFunc(ctx, func() { watches-- })
				return appeared, nil
			}
			return nil, nil
		}
		h.run()
		h.until("fault", 20) // the delays have grown to minutes
		time.Sleep(15 * time.Second)
		h.tpm.Absent = false
		appeared <- struct{}{}
		h.within(10*time.Second, "assigned", 1)
		synctest.Wait()
		if watches != 0 {
			t.Error("the device is still watched, although it is available")
		}
		h.stopped()
	})
}

func TestAStopEndsTheWaitForATPM(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHardwired(t, tpm.P256)
		h.tpm.Before = func(c tpm2.TPMCC, _ int) (tpm2.TPMRC, error) {
			if c == tpm2.TPMCCCreatePrimary {
				time.Sleep(20 * time.Second)
			}
			return 0, nil
		}
		h.run()
		time.Sleep(5 * time.Second)
		began := time.Now()
		if err := h.end(); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > stopLimit {
			t.Errorf("dpsd stopped after %s", took)
		}
		h.wantFaults()
		time.Sleep(time.Minute)
		h.wantReleased()
	})
}

func TestASlowTPMIsShownInSTATUSAndIsNotAHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHardwired(t, tpm.P256)
		h.Watchdog = 30 * time.Second
		h.tpm.Before = func(c tpm2.TPMCC, _ int) (tpm2.TPMRC, error) {
			if c == tpm2.TPMCCCreatePrimary || c == tpm2.TPMCCSign {
				time.Sleep(9 * time.Second)
			}
			return 0, nil
		}
		h.run()
		h.until("assigned", 1)
		h.wantFaults()
		if n := h.log.FilterMessage("hung").Len(); n != 0 {
			t.Error("the attempt was reported as hung")
		}
		h.stopped()
	})
}

func TestASignerThatAppearsLateIsUsedImmediately(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		socket := filepath.Join(g.dir, "signer.sock")
		x := g.certificate(device).(attest.X509)
		x.PrivateKey = attest.Reference{Signer: socket}
		g.Settings.Credentials = []attest.Credential{x}
		appeared := make(chan struct{}, 1)
		g.Watch = func(_ context.Context, paths ...string) (<-chan struct{}, error) {
			if slices.Equal(paths, []string{socket}) {
				return appeared, nil
			}
			if slices.Contains(paths, socket) {
				t.Error("the socket is watched before it has failed")
			}
			return nil, nil
		}
		g.run()
		g.until("fault", 20)
		time.Sleep(15 * time.Second)
		attempts := len(g.faults())
		appeared <- struct{}{}
		g.within(time.Second, "fault", attempts+1)
		if codes := g.faults(); slices.ContainsFunc(codes, func(code string) bool { return code != string(fault.SignerFailed) }) {
			t.Errorf("the faults are %v", codes)
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}

func TestTheSocketOfASignerIsWatchedUnlessTheSignerItselfRefuses(t *testing.T) {
	g := newGateway(t)
	s := g.supervisor()
	for kind, watched := range map[signer.Kind]bool{
		signer.Absent: true, signer.Slow: true, signer.Ended: true, signer.Forbidden: true, signer.Untrusted: true,
		signer.Refused: false, signer.Unsupported: false,
	} {
		err := refusing(kind, signer.CodeRefused, "x")
		s.suspectHardware(classify.Classify(classify.At(fault.StageCredential, err)), err)
		if is := s.inputs.hardware.path != ""; is != watched {
			t.Errorf("%s: watched: %v", kind, is)
		}
	}
	g.sim.Close()
}

func TestASignerWithAnotherKeyIsUsedAgainOnlyAfterTheDelaysOfARefusal(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "signer.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var clients sync.WaitGroup
	t.Cleanup(func() { _ = l.Close(); clients.Wait() })
	clients.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			clients.Go(func() {
				defer c.Close()
				_ = (&signer.Server{Public: key.Public(), Schemes: signer.Schemes(key.Public())}).Serve(c)
			})
		}
	})
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		x := g.certificate(device).(attest.X509)
		x.PrivateKey = attest.Reference{Signer: socket}
		g.Settings.Credentials = []attest.Credential{x}
		g.run()
		g.until("fault", 1)
		time.Sleep(time.Hour)
		synctest.Wait()
		codes := g.faults()
		if len(codes) < 2 || len(codes) > 20 || slices.ContainsFunc(codes, func(code string) bool { return code != string(fault.CredentialInvalid) }) {
			t.Errorf("the faults in an hour are %v", codes)
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}

// refusing is the error of a signer that does not use its key, for the codes of the catalogue.
func refusing(kind signer.Kind, code signer.Code, message string) error {
	const socket = "/run/dpsd-signer/device.sock"
	return &attest.SecretError{Reference: attest.Reference{Signer: socket}, Err: &attest.HardwareError{
		Path: socket, Err: &signer.Error{Kind: kind, Path: socket, Err: &signer.Failure{Code: code, Message: message}},
	}}
}

// newCertifiedInTPM returns a gateway whose issued certificate has a TPM key.
func newCertifiedInTPM(t *testing.T) (*certified, hardwired) {
	t.Helper()
	c := newCertified(t)
	h := hardwired{c.gateway, new(tpmtest.TPM)}
	c.Secrets.TPM = &tpm.Device{Open: h.tpm.Open}
	c.Settings.Certificate.KeyStore = certificate.InTPM
	return c, h
}

// wantTPMPair checks that the published certificate belongs to the TPM key beside it.
func (c *certified) wantTPMPair() *x509.Certificate {
	c.t.Helper()
	directory := filepath.Join(c.Store.Directory, "certificate", "current")
	chain, err := os.ReadFile(filepath.Join(directory, "chain.pem"))
	if err != nil {
		c.t.Fatal(err)
	}
	key, err := os.ReadFile(filepath.Join(directory, "key.pem"))
	if err != nil {
		c.t.Fatal(err)
	}
	block, _ := pem.Decode(chain)
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		c.t.Fatal(err)
	}
	f, err := tpm.Parse(key)
	if err != nil {
		c.t.Fatal(err)
	}
	if !f.Public().(*ecdsa.PublicKey).Equal(leaf.PublicKey) {
		c.t.Error("the certificate is for another key")
	}
	return leaf
}

func TestAnIssuedCertificateWithATPMKeyIsRenewedTenTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, h := newCertifiedInTPM(t)
		c.Settings.Certificate.RenewAt = 10
		c.run()
		serials := map[string]bool{}
		for n := range 11 {
			c.eventually("certificate-issued", n+1)
			leaf := c.wantTPMPair()
			serials[leaf.SerialNumber.String()] = true
			h.wantReleased()
		}
		if len(serials) != 11 {
			t.Errorf("%d certificates, want 11", len(serials))
		}
		c.wantRequests(11, 11)
		c.wantFaults()
		if n, _ := c.notified("STATUS=Waiting for the TPM (a new key)"); n != 11 {
			t.Errorf("STATUS= has mentioned the new key %d times", n)
		}
		h.stopped()
	})
}

func TestAChangeOfKeyStoreCausesARequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, h := newCertifiedInTPM(t)
		c.Settings.Certificate.KeyStore = certificate.InFile
		c.run()
		c.until("certificate-issued", 1)
		c.wantPair()
		c.Settings.Certificate.KeyStore = certificate.InTPM
		c.reboot()
		c.within(time.Minute, "certificate-issued", 2)
		c.wantTPMPair()
		c.reboot()
		c.until("assigned", 3)
		c.wantRequests(3, 2)
		c.Settings.Certificate.KeyStore = "" // the default
		c.reboot()
		c.within(time.Minute, "certificate-issued", 3)
		c.wantPair()
		why := c.log.FilterMessage("certificate-requested").All()[2].ContextMap()["why"]
		if why != "key_store has changed" {
			t.Errorf("the reason is %q", why)
		}
		h.stopped()
	})
}

func TestACertificateWhoseTPMKeyIsLostIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, h := newCertifiedInTPM(t)
		c.run()
		c.until("certificate-issued", 1)
		first := c.wantTPMPair()
		h.tpm.Absent = true
		c.reboot()
		c.until("assigned", 2)
		c.wantRequests(2, 1) // a TPM that is absent may return
		h.tpm.Absent = false
		h.tpm.Reset()
		c.reboot()
		c.within(time.Minute, "certificate-issued", 2)
		if c.wantTPMPair().Equal(first) {
			t.Error("the certificate is the same")
		}
		c.wantRequests(3, 2)
		c.wantFaults()
		h.stopped()
	})
}

func TestWithoutATPMTheGatewayIsAssignedAndTheCertificateIsIssuedLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, h := newCertifiedInTPM(t)
		h.tpm.Absent = true
		c.run()
		c.until("assigned", 1)
		c.wantReady(false)
		c.until("fault", 3)
		c.wantFaults(fault.TPMUnavailable, fault.TPMUnavailable, fault.TPMUnavailable)
		if stage := c.log.FilterMessage("fault").All()[0].ContextMap()["stage"]; stage != "certificate" {
			t.Errorf("the stage is %v", stage)
		}
		h.tpm.Absent = false
		c.until("certificate-issued", 1)
		c.wantReady(true)
		c.wantTPMPair()
		h.stopped()
	})
}

// If the power fails after the request, the key of the request is still there, but the TPM may
// have been replaced, or may appear late.
func TestThePendingTPMKeyIsKeptUnlessItIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, h := newCertifiedInTPM(t)
		c.withoutPolicy(true)
		c.run()
		c.until("fault", 1)
		file := filepath.Join(c.Store.Directory, "certificate", "pending", "key.pem")
		pending := func() string {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			return string(text)
		}
		first := pending()
		h.tpm.Before = func(command tpm2.TPMCC, _ int) (tpm2.TPMRC, error) {
			if command == tpm2.TPMCCLoad {
				return tpm2.TPMRCObjectMemory, nil // a key could be created, but not loaded
			}
			return 0, nil
		}
		c.reboot()
		c.until("fault", len(c.faults())+1)
		if pending() != first {
			t.Error("the key was replaced while the TPM was busy")
		}
		h.tpm.Before = nil
		h.tpm.Reset()
		c.withoutPolicy(false)
		c.reboot()
		c.within(time.Hour, "certificate-issued", 1)
		c.wantTPMPair()
		h.stopped()
	})
}

func TestTheFaultNamesAKeyTypeThatTheTPMDoesNotSupport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, h := newCertifiedInTPM(t)
		h.tpm.Curves = []tpm2.TPMECCCurve{tpm2.TPMECCNistP256}
		c.Settings.Certificate.KeyType = certificate.P384
		c.run()
		c.until("assigned", 1)
		c.wantFaults(fault.TPMKeyUnusable)
		entry := c.log.FilterMessage("fault").All()[0].ContextMap()
		if !strings.Contains(entry["cause"].(string), "ec-p384") && !strings.Contains(entry["cause"].(string), "P-384") || !strings.Contains(entry["advice"].(string), "dpsd tpm status") {
			t.Errorf("the fault is %v", entry)
		}
		h.stopped()
	})
}
