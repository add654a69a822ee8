package session

import (
	"context"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/classify"
	"github.com/dpsd-project/dpsd/dps"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/mqttv3"
	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/transport"
)

// request returns a request of the device gw-1 to a simulated service with the rules.
func request(t *testing.T, rules ...simulator.Rule) (*Request, *simulator.Server) {
	t.Helper()
	sim, err := simulator.New(simulator.Options{Seed: 1, Scenario: &simulator.Scenario{Rules: rules}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sim.Close() })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go sim.ServeMQTT(c)
		}
	}()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(sim.CA())
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte(sim.DeviceKey("gw-1")), 0o600); err != nil {
		t.Fatal(err)
	}
	r := &Request{
		Identity: dps.Identity{IDScope: sim.IDScope(), RegistrationID: "gw-1", ClientVersion: "dpsd/test"},
		Dialer: transport.Dialer{
			Host: "localhost", Roots: roots, Protocols: []transport.Protocol{transport.MQTT},
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, network, l.Addr().String())
			},
		},
	}
	if r.Proof, err = Prove(context.Background(), attest.SymmetricKey{Key: attest.Reference{File: key}}, r.Identity, attest.Secrets{}, time.Now()); err != nil {
		t.Fatal(err)
	}
	return r, sim
}

func TestASessionIsOpenAfterTheCONNACKAndEndsWithDISCONNECT(t *testing.T) {
	r, sim := request(t)
	var stream *transport.Conn
	r.Connected = func(conn *transport.Conn) error { stream = conn; return nil }
	s, err := r.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s.Client == nil || s.Conn == nil || s.Conn != stream || s.Inspector != "" {
		t.Errorf("got %+v, and Connected got %p", s, stream)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	s.Close(ended) // with a context that has ended
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		log := sim.Log()
		if last := log[len(log)-1]; last.Packet == "CLOSE" {
			if before := log[len(log)-2]; before.Packet != "DISCONNECT" {
				t.Errorf("the connection ends with %s", before.Packet)
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the simulator has not seen the end: %+v", log)
		}
	}
}

func TestARefusedCONNECTReturnsTheConnection(t *testing.T) {
	five := 5
	r, _ := request(t, simulator.Rule{On: simulator.OnConnect, Connack: &five})
	s, err := r.Open(t.Context())
	if !errors.As(err, new(*mqttv3.ConnackError)) || s.Client != nil || s.Conn == nil {
		t.Fatalf("got %+v, %v", s, err)
	}
	if f := r.Circumstances(s.Inspector, false).Classify(err); f.Code != fault.ConnackRefused || f.Stage != fault.StageConnect {
		t.Errorf("the fault is %v in stage %s", f, f.Stage)
	}
}

func TestAStreamThatCannotBeOpenedIsNoConnection(t *testing.T) {
	r, _ := request(t)
	r.Dialer.Roots = x509.NewCertPool()
	s, err := r.Open(t.Context())
	if s.Conn != nil || s.Client != nil {
		t.Errorf("got %+v", s)
	}
	if f := classify.Classify(err); f.Code != fault.TLSUntrusted || f.Stage != fault.StageTLS {
		t.Errorf("the fault is %v in stage %s", f, f.Stage)
	}
}

func TestAnErrorOfConnectedEndsTheSessionBeforeCONNECT(t *testing.T) {
	r, sim := request(t)
	enough := errors.New("enough")
	r.Connected = func(*transport.Conn) error { return enough }
	s, err := r.Open(t.Context())
	if !errors.Is(err, enough) || s.Client != nil || s.Conn == nil {
		t.Errorf("got %+v, %v", s, err)
	}
	if _, err := s.Conn.Write([]byte{0}); err == nil {
		t.Error("the stream is still open")
	}
	for _, e := range sim.Log() {
		if e.Packet == "CONNECT" {
			t.Error("CONNECT was sent")
		}
	}
}

func TestACertificateThatIsNotValidNowIsUsedAndExplainsARefusal(t *testing.T) {
	expired := &attest.CertificateError{Err: attest.ErrExpired}
	proof, err := Prove(context.Background(), credential{err: expired}, dps.Identity{}, attest.Secrets{}, time.Now())
	if err != nil || !errors.Is(proof.Validity, attest.ErrExpired) {
		t.Fatalf("got %+v, %v", proof, err)
	}
	r := Request{Proof: proof}
	refusal := classify.At(fault.StageRegister, &dps.ServiceError{Status: 401, Code: 401000})
	if f := r.Circumstances("", false).Classify(refusal); f.Code != fault.CertificateExpired {
		t.Errorf("the fault is %v", f)
	}
	if f := r.Circumstances("Proxy CA", false).Classify(refusal); f.Code != fault.TLSIntercepted {
		t.Errorf("with an inspector: %v", f)
	}
	if f := r.Circumstances("", true).Classify(refusal); f.Code != fault.ClockImplausible {
		t.Errorf("with an implausible clock: %v", f)
	}
	missing := &attest.SecretError{Err: os.ErrNotExist}
	if _, err := Prove(context.Background(), credential{err: missing}, dps.Identity{}, attest.Secrets{}, time.Now()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing key: %v", err)
	}
}

// credential is a credential whose proof fails with an error.
type credential struct {
	attest.Credential
	err error
}

func (c credential) Prove(context.Context, attest.Subject, attest.Secrets, time.Time) (attest.Proof, error) {
	return attest.Proof{}, c.err
}
