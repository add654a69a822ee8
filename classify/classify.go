// Package classify converts the errors of the packages below it to faults. Only this
// package creates faults, and it makes the text of peers, certificates, proxies and DNS in
// them safe to display.
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
	"github.com/dpsd-project/dpsd/certificate"
	"github.com/dpsd-project/dpsd/dps"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/mqttv3"
	"github.com/dpsd-project/dpsd/redact"
	"github.com/dpsd-project/dpsd/signer"
	"github.com/dpsd-project/dpsd/store"
	"github.com/dpsd-project/dpsd/tpm"
	"github.com/dpsd-project/dpsd/transport"
)

// Classify returns the fault for an error of any package below the daemon; see
// Circumstances.Classify. For an unknown error, it returns fault.Internal, which indicates
// a defect of this function.
func Classify(err error) fault.Fault { return Circumstances{}.Classify(err) }

// classified returns the fault for an error without changing the error's text.
func classified(err error) fault.Fault {
	var f fault.Fault
	if err == nil || errors.As(err, &f) {
		return f
	}
	stage := fault.StageConfiguration
	if staged, is := errors.AsType[*StageError](err); is {
		stage, err = staged.Stage, staged.Err
	}
	for _, classify := range []func(error, fault.Stage) (fault.Fault, bool){
		ofHub, ofHardware, ofCertificate, ofService, ofState, ofGateway, ofTransport, ofMQTT, ofStream,
	} {
		if f, known := classify(err, stage); known {
			return f
		}
	}
	return fault.New(fault.Internal, stage, err)
}

// Circumstances are facts that may explain why a credential was refused, such as TLS
// inspection or the gateway's clock. They never prevent an attempt.
type Circumstances struct {
	Inspector   string // the issuer that inspects the connection, see Inspector; "" if none does
	Implausible bool   // the clock shows a time that has already passed
	Validity    error  // why the device certificate or its chain is not valid now, an *attest.CertificateError
	Purpose     error  // the error of attest.ForClients if the device certificate is not for clients
	Doubt       error  // why the symmetric key may be wrong, an *attest.Doubt

	// RegistrationID is the registration ID of the request, or "" if none was sent. The
	// cause of a refusal includes it unless the configuration contains it.
	RegistrationID string
	Source         attest.RegistrationID

	Secrets redact.Known // secrets sent to peers, which may repeat them
}

// Classify is like the function Classify, but takes the circumstances into account. The
// fault's text is one line without secrets, of at most foreign.MaxFault bytes including its
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
	w := formatter{&c.Secrets}
	f.Err, f.TrackingID = w.format(f.Err), w.line(f.TrackingID, maxTrackingID)
	return f
}

// ofCertificate classifies what is wrong with a certificate that DPS issues.
func ofCertificate(err error, stage fault.Stage) (fault.Fault, bool) {
	refused, is := errors.AsType[*certificate.RefusedError](err)
	switch {
	case is:
		f, _ := ofService(refused.Err, stage)
		said := f
		f = fault.New(fault.CertificateNotIssued, fault.StageCertificate, err)
		f.ServiceCode, f.TrackingID, f.RetryAfter = said.ServiceCode, said.TrackingID, said.RetryAfter
		return f, true
	case errors.Is(err, certificate.ErrNotIssued):
		return fault.New(fault.CertificateNotIssued, fault.StageCertificate, err), true
	case errors.As(err, new(*certificate.RejectedError)):
		return fault.New(fault.CertificateRejected, fault.StageCertificate, err), true
	case errors.As(err, new(*certificate.RegistrationIDError)):
		return fault.New(fault.InputInvalid, stage, err), true
	case errors.As(err, new(*store.PairError)):
		return fault.New(fault.CertificateUnreadable, fault.StageCertificate, err), true
	}
	return fault.Fault{}, false
}

// ofHardware classifies the errors of keys that a TPM or a signer holds.
func ofHardware(err error, stage fault.Stage) (fault.Fault, bool) {
	if of, is := errors.AsType[*tpm.Error](err); is {
		code := fault.TPMUnavailable
		switch of.Kind {
		case tpm.Unusable, tpm.Unsupported, tpm.Protected, tpm.Policy:
			code = fault.TPMKeyUnusable
		case tpm.LockedOut:
			code = fault.TPMLockedOut
		case tpm.Damaged:
			code = fault.CredentialInvalid
		}
		return fault.New(code, stage, err), true
	}
	if of, is := errors.AsType[*signer.Error](err); is {
		code := fault.SignerFailed
		switch of.Kind {
		case signer.Forbidden, signer.Untrusted, signer.Unsupported, signer.Refused:
			code = fault.SignerRefused
		}
		return fault.New(code, stage, err), true
	}
	return fault.Fault{}, false
}

// ofService classifies the errors of DPS (dps-protocol: the error table).
func ofService(err error, stage fault.Stage) (fault.Fault, bool) {
	if said, is := errors.AsType[*dps.ServiceError](err); is {
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
	if malformed, is := errors.AsType[*dps.MalformedError](err); is {
		f := fault.New(fault.MalformedReply, stage, err)
		f.RetryAfter = malformed.RetryAfter
		return f, true
	}
	if errors.Is(err, dps.ErrNoReply) {
		return fault.New(fault.NoReply, stage, err), true
	}
	return fault.Fault{}, false
}

// ofState classifies the errors of the state directory.
func ofState(err error, _ fault.Stage) (fault.Fault, bool) {
	switch {
	case errors.As(err, new(*store.LockedError)):
		return fault.New(fault.StateLocked, fault.StageState, err), true
	case errors.As(err, new(*store.NewerSchemaError)):
		return fault.New(fault.StateNewerSchema, fault.StageState, err), true
	case errors.As(err, new(*store.InvalidError)):
		return fault.New(fault.MalformedReply, fault.StagePoll, err), true
	case errors.As(err, new(*store.WriteError)):
		return fault.New(fault.StateUnwritable, fault.StageState, err), true
	}
	return fault.Fault{}, false
}

// ofGateway classifies the errors of this gateway's files: credentials, identity, payload.
func ofGateway(err error, stage fault.Stage) (fault.Fault, bool) {
	secret := errors.As(err, new(*attest.SecretError))
	missing := errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || errors.As(err, new(*fs.PathError)) || errors.As(err, new(syscall.Errno))
	switch {
	case secret && errors.Is(err, attest.ErrEncrypted):
		return fault.New(fault.CredentialEncrypted, stage, err), true
	case secret && missing:
		return fault.New(fault.CredentialUnreadable, stage, err), true
	case secret:
		return fault.New(fault.CredentialInvalid, stage, err), true
	case errors.As(err, new(*attest.IdentityError)) || errors.As(err, new(*PayloadError)):
		if missing || errors.Is(err, attest.ErrNoMachineID) || errors.Is(err, attest.ErrNoHostname) {
			return fault.New(fault.InputUnreadable, stage, err), true
		}
		return fault.New(fault.InputInvalid, stage, err), true
	case errors.Is(err, dps.ErrPayload):
		return fault.New(fault.InputInvalid, fault.StageIdentity, err), true
	}
	return fault.Fault{}, false
}

// order lists the stages of package transport in the order of a connection. They have the
// same names as those of package fault.
var order = []transport.Stage{
	transport.StageCA, transport.StageName, transport.StageTCP, transport.StageProxy, transport.StageTLS, transport.StageWebSocket, transport.StageHTTP,
}

// ofTransport classifies the errors of establishing a connection. If several protocols were
// tried, it returns the fault of the protocol that got furthest.
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
	if furthest.Stage == transport.StageHTTP {
		stage = fault.StageHub // only a hub is asked over HTTPS
	}
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
	case nothingSent(cause):
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
	if f, known := ofStream(err, stage); known || furthest.Stage != transport.StageWebSocket && furthest.Stage != transport.StageHTTP {
		return f, known
	}
	if furthest.Stage == transport.StageHTTP {
		return fault.New(fault.HubUnavailable, stage, err), true // the answer was not HTTP
	}
	return named(fault.WebSocketRefused) // the reply was not HTTP
}

// onlyMQTT reports whether only MQTT over TLS was tried, and not on port 443, which almost
// every firewall allows.
func onlyMQTT(tried transport.Errors) bool {
	for _, e := range tried {
		_, port, _ := net.SplitHostPort(e.Address)
		if e.Protocol != transport.MQTT || port == strconv.Itoa(transport.DefaultWebSocketPort) {
			return false
		}
	}
	return len(tried) > 0
}

// ofTLS classifies the cause of a failed handshake; whole is the error to report.
func ofTLS(cause, whole error) (fault.Fault, bool) {
	named := func(code fault.Code) (fault.Fault, bool) { return fault.New(code, fault.StageTLS, whole), true }
	var (
		invalid   x509.CertificateInvalidError
		hostname  x509.HostnameError
		authority x509.UnknownAuthorityError
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
	case errors.As(cause, &authority) || errors.As(cause, new(*tls.CertificateVerificationError)):
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
	// An alert of the peer is a *net.OpError, but the connection was not lost.
	if !alerted(cause) {
		if f, known := ofStream(whole, fault.StageTLS); known {
			return f, true
		}
	}
	return named(fault.TLSFailed)
}

// notYet distinguishes a certificate that is not yet valid from an expired one: x509 has
// one reason for both.
func notYet(e x509.CertificateInvalidError) bool {
	return e.Cert != nil && strings.Contains(e.Detail, "is before")
}

// refusals are the alerts of RFC 8446 §6.2 with which a server rejects the client's
// certificate, as texts of crypto/tls, which exports no codes.
var refusals = []string{
	"tls: bad certificate", "tls: unsupported certificate", "tls: revoked certificate",
	"tls: expired certificate", "tls: unknown certificate", "tls: unknown certificate authority",
	"tls: access denied", "tls: certificate required",
}

// certificateRefused reports whether err is such an alert from a verified server that asked
// for the certificate. Before verification, anyone on the path can send one, so it means
// nothing. With TLS 1.3, the alert arrives after the client's part of the handshake,
// instead of the CONNACK.
func certificateRefused(err error) bool {
	alert, found := transport.RemoteAlert(err)
	var refused *transport.RefusedError
	return found && slices.Contains(refusals, alert) && errors.As(err, &refused) && refused.Certificate
}

// certificateDemanded reports whether a verified server ended the handshake because it
// received no certificate. TLS 1.2 has no specific alert for this.
func certificateDemanded(err error) bool {
	alert, found := transport.RemoteAlert(err)
	var refused *transport.RefusedError
	return found && (slices.Contains(refusals, alert) || alert == "tls: handshake failure") && errors.As(err, &refused) && refused.Missing
}

// demanded returns the fault for such an error.
func demanded(err error) fault.Fault {
	f := fault.New(fault.TLSFailed, fault.StageTLS, err)
	f.Circumstance = fault.CertificateDemanded
	return f
}

func alerted(err error) bool {
	_, found := transport.RemoteAlert(err)
	return found
}

// ofMQTT classifies the errors of MQTT.
func ofMQTT(err error, stage fault.Stage) (fault.Fault, bool) {
	named := func(code fault.Code) (fault.Fault, bool) { return fault.New(code, stage, err), true }
	var connack *mqttv3.ConnackError
	switch {
	case certificateRefused(err):
		return fault.New(fault.CertificateRefused, fault.StageTLS, err), true
	case stage == fault.StageConnect && certificateDemanded(err):
		return demanded(err), true
	case stage == fault.StageConnect && alerted(err): // instead of the CONNACK: the server's part of the handshake
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
	case errors.As(err, new(*mqttv3.SubackError)):
		return named(fault.NotDPS)
	case errors.Is(err, mqttv3.ErrNotMQTT):
		return named(fault.NotMQTT)
	case errors.Is(err, mqttv3.ErrTimeout):
		return named(fault.NoReply)
	case errors.As(err, new(*mqttv3.ProtocolError)), errors.Is(err, mqttv3.ErrPacketTooLarge),
		errors.Is(err, transport.ErrNotBinary), errors.As(err, new(*transport.FrameError)):
		return named(fault.ProtocolViolation)
	case errors.Is(err, mqttv3.ErrInvalid):
		return named(fault.RequestRefused)
	case errors.Is(err, mqttv3.ErrClosed):
		return named(fault.ConnectionLost)
	}
	return fault.Fault{}, false
}

// ofStream classifies the errors that end a connection.
func ofStream(err error, stage fault.Stage) (fault.Fault, bool) {
	switch {
	case nothingSent(err):
		return fault.New(fault.NetworkUnreachable, stage, err), true
	case isTimeout(err), errors.Is(err, context.DeadlineExceeded):
		return fault.New(fault.NoReply, stage, err), true
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed), errors.Is(err, io.ErrClosedPipe),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNABORTED),
		errors.As(err, new(*net.OpError)):
		return fault.New(fault.ConnectionLost, stage, err), true
	}
	return fault.Fault{}, false
}

// nothingSent reports whether nothing was sent because of err. The resolver returns only
// the text of its errors.
func nothingSent(err error) bool {
	for _, errno := range []syscall.Errno{syscall.ENETUNREACH, syscall.EHOSTUNREACH, syscall.ENETDOWN, syscall.EHOSTDOWN, syscall.EADDRNOTAVAIL} {
		var resolver *net.DNSError
		if errors.Is(err, errno) || errors.As(err, &resolver) && strings.Contains(resolver.Err, errno.Error()) {
			return true
		}
	}
	return false
}

// resolverMissing reports whether nothing listens on the name server's port.
func resolverMissing(err error) bool {
	var resolver *net.DNSError
	return errors.As(err, &resolver) && strings.Contains(resolver.Err, "connection refused")
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout()
}
