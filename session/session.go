// Package session opens an MQTT session with DPS: it proves the identity of the gateway,
// opens the stream and sends CONNECT. The daemon's registrations and dpsd check share it,
// so that check sees the same failures as the daemon.
package session

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/classify"
	"github.com/dpsd-project/dpsd/dps"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/mqttv3"
	"github.com/dpsd-project/dpsd/redact"
	"github.com/dpsd-project/dpsd/sas"
	"github.com/dpsd-project/dpsd/transport"
)

const (
	// MaxPacket limits a packet of the service, in bytes. The service does not document a
	// limit for its replies; this allows 1 MiB and the topic.
	MaxPacket = 1<<20 + 64<<10
	// closeLimit limits the time for DISCONNECT on a connection that may be dead.
	closeLimit = 500 * time.Millisecond
)

// Proof is a credential's proof of the gateway's identity.
type Proof struct {
	attest.Proof
	// Validity is the *attest.CertificateError that describes why the device certificate or
	// its chain is not valid now; nil if they are valid. An expired certificate is used
	// nevertheless: the clock may be wrong, and the service decides. Validity explains a
	// refusal.
	Validity error
}

// Prove returns the proof of a credential for the identity. Close the proof when the attempt ends.
// The errors are those of attest.Credential, except *attest.CertificateError.
func Prove(ctx context.Context, c attest.Credential, identity dps.Identity, secrets attest.Secrets, now time.Time) (Proof, error) {
	proof, err := c.Prove(ctx, attest.Subject{Resource: identity.Resource(), RegistrationID: identity.RegistrationID}, secrets, now)
	if errors.As(err, new(*attest.CertificateError)) {
		return Proof{Proof: proof, Validity: err}, nil
	}
	return Proof{Proof: proof}, err
}

// Request contains the parameters of a session.
type Request struct {
	Identity  dps.Identity
	Proof     Proof
	Dialer    transport.Dialer
	KeepAlive time.Duration // MQTT keep-alive interval; 0 disables it
	// ResponseTimeout limits the wait for the CONNACK and for each later acknowledgement; 0
	// means dps.DefaultResponseTimeout.
	ResponseTimeout time.Duration
	// Source is the source of the registration ID. The cause of a refusal includes both,
	// unless the configuration contains the registration ID itself.
	Source attest.RegistrationID
	// Connected is called with the stream before CONNECT is sent. Its error ends the
	// session, and Open returns it. It may be nil.
	Connected func(*transport.Conn) error
}

// Session is a session with DPS, or the known part of one that could not be opened.
type Session struct {
	Client    *mqttv3.Client  // nil if there is no session
	Conn      *transport.Conn // nil if there was no stream
	Inspector string          // the issuer that inspects the connection, see classify.Inspector; "" if none does
}

// Open opens the stream, sends CONNECT and waits for the CONNACK. The error is a
// *classify.StageError or the error of Connected; s contains the known part of the failed
// session.
func (r *Request) Open(ctx context.Context) (s Session, err error) {
	if s.Conn, err = r.Dialer.Dial(ctx, r.Proof.Certificate); err != nil {
		if refused := (*transport.RefusedError)(nil); errors.As(err, &refused) {
			s.Inspector = classify.Inspector(refused.Host, refused.Issuer)
		}
		if failed := r.Proof.KeyError(); failed != nil && ctx.Err() == nil {
			return s, classify.At(fault.StageCredential, failed)
		}
		return s, classify.At(fault.StageTCP, err)
	}
	s.Inspector = classify.Inspector(r.Dialer.Host, s.Conn.Issuer())
	if r.Connected != nil {
		if err := r.Connected(s.Conn); err != nil {
			_ = s.Conn.Close()
			return s, err
		}
	}
	s.Client, err = mqttv3.Connect(ctx, s.Conn, mqttv3.Options{
		ClientID: r.Identity.ClientID(), UserName: r.Identity.UserName(), Password: r.Proof.Password,
		KeepAlive: r.KeepAlive, Timeout: cmp.Or(r.ResponseTimeout, dps.DefaultResponseTimeout), MaxPacket: MaxPacket,
	})
	return s, classify.At(fault.StageConnect, err)
}

// Close sends DISCONNECT, even if ctx has ended, and closes the stream.
func (s *Session) Close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeLimit)
	defer cancel()
	_ = s.Client.Close(ctx)
}

// Secrets returns the secrets that were sent to peers, which may repeat them.
func (r *Request) Secrets() (known redact.Known) {
	known.Add([]byte(sas.Signature(r.Proof.Password)))
	known.Add([]byte(r.Dialer.ProxyPassword()))
	return known
}

// Circumstances returns the facts that may explain a refusal of this request, given the
// inspector of its connection and whether the clock is implausible.
func (r *Request) Circumstances(inspector string, implausible bool) classify.Circumstances {
	c := classify.Circumstances{
		Inspector: inspector, Implausible: implausible,
		Validity: r.Proof.Validity, Doubt: r.Proof.Doubt, Secrets: r.Secrets(),
		RegistrationID: r.Identity.RegistrationID, Source: r.Source,
	}
	if certificate := r.Proof.Certificate; certificate != nil {
		c.Purpose = attest.ForClients(certificate.Leaf)
	}
	return c
}
