// Package classify turns the errors of the packages below it into faults. It is the only
// place that makes faults, and the only place that cleans and bounds the text of peers,
// certificates, proxies and DNS in them.
package classify

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/dps"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/mqttv3"
	"github.com/dpsd-project/dpsd/redact"
	"github.com/dpsd-project/dpsd/store"
	"github.com/dpsd-project/dpsd/transport"
)

// Classify names an error of any package below the daemon. It is the only
// place where errors become faults, and the one where the text of others in them is
// made fit to be shown: see Circumstances.Classify. An error that it does not know is
// fault.Internal, which is a defect of this function.
func Classify(err error) fault.Fault { return Circumstances{}.Classify(err) }

// classified names an error, but leaves its text as it is.
func classified(err error) fault.Fault {
	var f fault.Fault
	if err == nil || errors.As(err, &f) {
		return f
	}
	stage := fault.StageConfiguration
	var staged *StageError
	if errors.As(err, &staged) {
		stage, err = staged.Stage, staged.Err
	}
	for _, classify := range []func(error, fault.Stage) (fault.Fault, bool){
		ofService, ofState, ofGateway, ofTransport, ofMQTT, ofStream,
	} {
		if f, known := classify(err, stage); known {
			return f
		}
	}
	return fault.New(fault.Internal, stage, err)
}

// Circumstances are what may explain that a credential was refused: whether
// somebody stands on the way, or this gateway's own clock. They never keep an
// attempt from being made.
type Circumstances struct {
	Inspector   string // who inspects the connection, see Inspector; "" for nobody
	Implausible bool   // the time is before one that has been
	Validity    error  // what the clock says against the device certificate or its chain, an *attest.CertificateError
	Purpose     error  // that the device certificate is not for clients, of attest.ForClients
	Doubt       error  // what speaks against the symmetric key, an *attest.Doubt

	// RegistrationID is the one under which the service was asked; "" when it was not. A
	// refusal names it, unless it is what the configuration says.
	RegistrationID string
	Source         attest.RegistrationID

	Told redact.Known // the secrets that peers were told, who may repeat them
}

// Classify is the function of that name, for one who knows the circumstances. What the
// fault says is one line without a secret, of at most foreign.MaxFault bytes with its
// code and tracking ID.
func (c Circumstances) Classify(err error) fault.Fault {
	f := inHome(classified(err))
	if c.RegistrationID != "" && c.Source.Varies() && (f.Class == fault.Credential || f.Class == fault.Enrollment) {
		f.Err = fmt.Errorf("%w; the registration ID was %s (%s)", f.Err, c.RegistrationID, c.Source)
	}
	switch {
	case f.Class != fault.Credential:
	case c.Inspector != "":
		f.Code, f.Class = fault.TLSIntercepted, fault.Interception
		f.Err = &inspectedError{c.Inspector, f.Err}
	case c.Implausible, errors.Is(c.Validity, attest.ErrNotYetValid):
		f.Code, f.Class = fault.ClockImplausible, fault.Clock
	case c.Validity != nil:
		f.Code = fault.CertificateExpired
		f.Err = fmt.Errorf("%w; %w", f.Err, c.Validity)
	case c.Doubt != nil:
		f.Err = fmt.Errorf("%w; %w", f.Err, c.Doubt)
	case c.Purpose != nil:
		f.Err = fmt.Errorf("%w; %w", f.Err, c.Purpose)
	}
	w := wording{&c.Told}
	f.Err, f.TrackingID = w.of(f.Err), w.line(f.TrackingID, maxTrackingID)
	return f
}

// ofService knows the answers of DPS (dps-protocol: the error table).
func ofService(err error, stage fault.Stage) (fault.Fault, bool) {
	var said *dps.ServiceError
	if errors.As(err, &said) {
		code := fault.RequestRefused
		switch {
		case said.Disabled():
			code = fault.EnrollmentDisabled
		case said.AllocationFailed():
			code = fault.AllocationFailed
		case said.Throttled():
			code = fault.Throttled
		case said.Temporary():
			code = fault.ServiceError
		case said.OperationLost():
			code = fault.OperationLost
		case said.NotFound():
			code = fault.EnrollmentNotFound
		case said.Unauthorized():
			code = fault.Unauthorized
		}
		f := fault.New(code, stage, err)
		f.ServiceCode, f.TrackingID, f.RetryAfter = said.Code, said.TrackingID, said.RetryAfter
		if strings.Contains(strings.ToLower(said.Message), "api version") {
			f.Circumstance = fault.APIVersion // 400004 "Unsupported API version 2021-06-01."
		}
		return f, true
	}
	var malformed *dps.MalformedError
	if errors.As(err, &malformed) {
		f := fault.New(fault.MalformedReply, stage, err)
		f.RetryAfter = malformed.RetryAfter
		return f, true
	}
	if errors.Is(err, dps.ErrNoReply) {
		return fault.New(fault.NoReply, stage, err), true
	}
	return fault.Fault{}, false
}

// ofState knows what the disk can refuse.
func ofState(err error, _ fault.Stage) (fault.Fault, bool) {
	var (
		locked *store.LockedError
		newer  *store.NewerSchemaError
		write  *store.WriteError
		bad    *store.InvalidError
	)
	switch {
	case errors.As(err, &locked):
		return fault.New(fault.StateLocked, fault.StageState, err), true
	case errors.As(err, &newer):
		return fault.New(fault.StateNewerSchema, fault.StageState, err), true
	case errors.As(err, &bad):
		return fault.New(fault.MalformedReply, fault.StagePoll, err), true
	case errors.As(err, &write):
		return fault.New(fault.StateUnwritable, fault.StageState, err), true
	}
	return fault.Fault{}, false
}

// ofGateway knows the files of this gateway: credentials, identity, payload.
func ofGateway(err error, stage fault.Stage) (fault.Fault, bool) {
	var (
		secret   *attest.SecretError
		identity *attest.IdentityError
		payload  *PayloadError
	)
	missing := errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || errors.As(err, new(*fs.PathError)) || errors.As(err, new(syscall.Errno))
	switch {
	case errors.As(err, &secret) && errors.Is(err, attest.ErrEncrypted):
		return fault.New(fault.CredentialEncrypted, stage, err), true
	case errors.As(err, &secret) && missing:
		return fault.New(fault.CredentialUnreadable, stage, err), true
	case errors.As(err, &secret):
		return fault.New(fault.CredentialInvalid, stage, err), true
	case errors.As(err, &identity) || errors.As(err, &payload):
		if missing || errors.Is(err, attest.ErrNoMachineID) || errors.Is(err, attest.ErrNoHostname) {
			return fault.New(fault.InputUnreadable, stage, err), true
		}
		return fault.New(fault.InputInvalid, stage, err), true
	case errors.Is(err, dps.ErrPayload):
		return fault.New(fault.InputInvalid, fault.StageIdentity, err), true
	}
	return fault.Fault{}, false
}

// order is the order in which a connection passes the stages of package transport, which
// have the names of those of package fault.
var order = []transport.Stage{
	transport.StageCA, transport.StageName, transport.StageTCP, transport.StageProxy, transport.StageTLS, transport.StageWebSocket,
}

// ofTransport knows why there is no connection. When several protocols were tried, the
// fault is that of the protocol that got furthest.
func ofTransport(err error, _ fault.Stage) (fault.Fault, bool) {
	var (
		several  transport.Errors
		furthest *transport.Error
	)
	if errors.As(err, &several) {
		furthest = slices.MaxFunc(several, func(a, b *transport.Error) int {
			return cmp.Compare(slices.Index(order, a.Stage), slices.Index(order, b.Stage))
		})
	} else if !errors.As(err, &furthest) { // dpsd check tries the protocols one by one
		return fault.Fault{}, false
	}
	if furthest.Stage == transport.StageCA {
		return fault.New(fault.CAUnreadable, fault.StageTLS, err), true
	}
	stage := fault.Stage(furthest.Stage)
	named := func(code fault.Code) (fault.Fault, bool) {
		f := fault.New(code, stage, err)
		if onlyMQTT(several) {
			f.Circumstance = fault.OnlyMQTT
		}
		return f, true
	}
	cause := furthest.Err

	var upgrade *transport.UpgradeError
	switch {
	case blocked(furthest):
		return fault.New(fault.DNSBlocked, stage, &blockedError{furthest.Remote.String(), err}), true
	case errors.As(cause, new(*transport.NoNameServerError)):
		return named(fault.ResolverMissing)
	case unreachable(cause):
		return named(fault.NetworkUnreachable)
	case resolverMissing(cause):
		return named(fault.ResolverMissing)
	case furthest.Stage == transport.StageProxy:
		return named(ofProxy(cause))
	case errors.As(cause, &upgrade):
		if portal(upgrade.Status) || upgrade.Status/100 == 2 && upgrade.HTML() {
			return named(fault.CaptivePortal)
		}
		return named(fault.WebSocketRefused)
	case errors.Is(cause, context.DeadlineExceeded) || isTimeout(cause):
		if furthest.Stage == transport.StageName {
			return named(fault.DNSFailed)
		}
		return named(fault.ConnectTimeout)
	case furthest.Stage == transport.StageName:
		return named(fault.DNSFailed)
	case errors.Is(cause, syscall.ECONNREFUSED):
		return named(fault.TCPRefused)
	case furthest.Stage == transport.StageTLS:
		return ofTLS(cause, err)
	}
	if f, known := ofStream(err, stage); known || furthest.Stage != transport.StageWebSocket {
		return f, known
	}
	return named(fault.WebSocketRefused) // what came was no HTTP
}

// onlyMQTT reports whether MQTT over TLS was all that was tried, and not at the port that
// every firewall lets out.
func onlyMQTT(tried transport.Errors) bool {
	for _, e := range tried {
		_, port, _ := net.SplitHostPort(e.Address)
		if e.Protocol != transport.MQTT || port == strconv.Itoa(transport.DefaultWebSocketPort) {
			return false
		}
	}
	return len(tried) > 0
}

// ofTLS knows why a handshake failed; whole is the error to report.
func ofTLS(cause, whole error) (fault.Fault, bool) {
	named := func(code fault.Code) (fault.Fault, bool) { return fault.New(code, fault.StageTLS, whole), true }
	var (
		invalid   x509.CertificateInvalidError
		hostname  x509.HostnameError
		authority x509.UnknownAuthorityError
		verify    *tls.CertificateVerificationError
		who       *transport.CertificateError
		foreign   *transport.NotTLSError
	)
	switch {
	case errors.As(cause, &invalid) && invalid.Reason == x509.Expired:
		if notYet(invalid) {
			return named(fault.ClockImplausible)
		}
		return named(fault.TLSExpired)
	case errors.As(cause, &hostname):
		return named(fault.TLSWrongHost)
	case errors.As(cause, &authority) && errors.As(cause, &who) && intercepted(who):
		return named(fault.TLSIntercepted)
	case errors.As(cause, &authority) || errors.As(cause, &verify):
		f := fault.New(fault.TLSUntrusted, fault.StageTLS, whole)
		if errors.As(cause, &who) {
			f.Circumstance = Trust(who.Host)
		}
		return f, true
	case errors.As(cause, &foreign) && foreign.HTTP():
		return named(fault.CaptivePortal)
	case errors.As(cause, &foreign):
		return named(fault.NotTLS)
	case certificateRefused(cause):
		return named(fault.CertificateRefused)
	case certificateDemanded(cause):
		return demanded(whole), true
	case strings.Contains(cause.Error(), "protocol version"):
		return named(fault.TLSVersion)
	}
	// An alert of the peer comes as a *net.OpError, but nothing was lost.
	if !alerted(cause) {
		if f, known := ofStream(whole, fault.StageTLS); known {
			return f, true
		}
	}
	return named(fault.TLSFailed)
}

// notYet tells a certificate of the future from one of the past: x509 has one
// reason for both.
func notYet(e x509.CertificateInvalidError) bool {
	return e.Cert != nil && strings.Contains(e.Detail, "is before")
}

// refusals are the alerts of RFC 8446 §6.2 with which a server turns down the
// client's certificate, in the words of crypto/tls, which exports no codes.
var refusals = []string{
	"tls: bad certificate", "tls: unsupported certificate", "tls: revoked certificate",
	"tls: expired certificate", "tls: unknown certificate", "tls: unknown certificate authority",
	"tls: access denied", "tls: certificate required",
}

// certificateRefused recognises such an alert of a verified server that asked for the
// certificate. Anybody on the way can send one before, and then it says nothing. Under TLS
// 1.3 it arrives after the client's side of the handshake is done, in place of the CONNACK.
func certificateRefused(err error) bool {
	alert, found := transport.RemoteAlert(err)
	var refused *transport.RefusedError
	return found && slices.Contains(refusals, alert) && errors.As(err, &refused) && refused.Certificate
}

// certificateDemanded recognises a verified server that was shown no certificate and gave up
// for that. Under TLS 1.2 there is no alert of its own for it.
func certificateDemanded(err error) bool {
	alert, found := transport.RemoteAlert(err)
	var refused *transport.RefusedError
	return found && (slices.Contains(refusals, alert) || alert == "tls: handshake failure") && errors.As(err, &refused) && refused.Missing
}

// demanded is the fault of such a server.
func demanded(err error) fault.Fault {
	f := fault.New(fault.TLSFailed, fault.StageTLS, err)
	f.Circumstance = fault.CertificateDemanded
	return f
}

func alerted(err error) bool {
	_, found := transport.RemoteAlert(err)
	return found
}

// ofMQTT knows what goes wrong inside the stream.
func ofMQTT(err error, stage fault.Stage) (fault.Fault, bool) {
	named := func(code fault.Code) (fault.Fault, bool) { return fault.New(code, stage, err), true }
	var (
		connack  *mqttv3.ConnackError
		suback   *mqttv3.SubackError
		protocol *mqttv3.ProtocolError
	)
	switch {
	case certificateRefused(err):
		return fault.New(fault.CertificateRefused, fault.StageTLS, err), true
	case stage == fault.StageConnect && certificateDemanded(err):
		return demanded(err), true
	case stage == fault.StageConnect && alerted(err): // in place of the CONNACK: the server's part of the handshake
		return fault.New(fault.TLSFailed, fault.StageTLS, err), true
	case errors.As(err, &connack):
		switch connack.ReturnCode {
		case 4, 5:
			return named(fault.ConnackRefused)
		case 3:
			return named(fault.ConnackUnavailable)
		case 1, 2:
			return named(fault.ConnackRejected)
		}
		return named(fault.ProtocolViolation)
	case errors.As(err, &suback):
		return named(fault.NotDPS)
	case errors.Is(err, mqttv3.ErrNotMQTT):
		return named(fault.NotMQTT)
	case errors.Is(err, mqttv3.ErrTimeout):
		return named(fault.NoReply)
	case errors.As(err, &protocol), errors.Is(err, mqttv3.ErrPacketTooLarge),
		errors.Is(err, transport.ErrNotBinary), errors.As(err, new(*transport.FrameError)):
		return named(fault.ProtocolViolation)
	case errors.Is(err, mqttv3.ErrInvalid):
		return named(fault.RequestRefused)
	case errors.Is(err, mqttv3.ErrClosed):
		return named(fault.ConnectionLost)
	}
	return fault.Fault{}, false
}

// ofStream knows how a connection can end.
func ofStream(err error, stage fault.Stage) (fault.Fault, bool) {
	var op *net.OpError
	switch {
	case unreachable(err):
		return fault.New(fault.NetworkUnreachable, stage, err), true
	case isTimeout(err), errors.Is(err, context.DeadlineExceeded):
		return fault.New(fault.NoReply, stage, err), true
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed), errors.Is(err, io.ErrClosedPipe),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNABORTED),
		errors.As(err, &op):
		return fault.New(fault.ConnectionLost, stage, err), true
	}
	return fault.Fault{}, false
}

// unreachable means that nothing left this machine. The resolver hands on only
// the text of its errors.
func unreachable(err error) bool {
	for _, errno := range []syscall.Errno{syscall.ENETUNREACH, syscall.EHOSTUNREACH, syscall.ENETDOWN, syscall.EHOSTDOWN, syscall.EADDRNOTAVAIL} {
		var resolver *net.DNSError
		if errors.Is(err, errno) || errors.As(err, &resolver) && strings.Contains(resolver.Err, errno.Error()) {
			return true
		}
	}
	return false
}

// resolverMissing means that nobody answers at the name server's port.
func resolverMissing(err error) bool {
	var resolver *net.DNSError
	return errors.As(err, &resolver) && strings.Contains(resolver.Err, "connection refused")
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout()
}
