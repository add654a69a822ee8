package classify

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/certificate"
	"github.com/dpsd-project/dpsd/dps"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/hub"
	"github.com/dpsd-project/dpsd/input"
	"github.com/dpsd-project/dpsd/modules"
	"github.com/dpsd-project/dpsd/mqttv3"
	"github.com/dpsd-project/dpsd/pemfile"
	"github.com/dpsd-project/dpsd/signer"
	"github.com/dpsd-project/dpsd/store"
	"github.com/dpsd-project/dpsd/tpm"
	"github.com/dpsd-project/dpsd/transport"
)

// reply returns the registration's error for a message of the service.
func reply(t *testing.T, topic, body string) error {
	t.Helper()
	r := &dps.Registration{Identity: dps.Identity{IDScope: "0ne00000000", RegistrationID: "gw-1"}}
	if _, err := r.Begin(time.Now()); err != nil {
		t.Fatal(err)
	}
	_, err := r.Handle(time.Now(), dps.Message{Topic: topic, Payload: []byte(body)})
	if err == nil {
		t.Fatalf("%s %s is no error", topic, body)
	}
	return err
}

const global = "global.azure-devices-provisioning.net"

// presented returns the error of a handshake that failed for reason, with a certificate for
// host by the issuer.
func presented(host, issuer string, reason error) error {
	c := &x509.Certificate{
		Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		// VerifyHostname checks DNSNames only if the extension is present.
		Extensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}}},
	}
	if issuer != "" {
		c.Issuer = pkix.Name{CommonName: "Issuing CA 1", Organization: []string{issuer}}
	}
	return &transport.CertificateError{Certificate: c, Host: host, Err: &tls.CertificateVerificationError{UnverifiedCertificates: []*x509.Certificate{c}, Err: reason}}
}

// ofTPM and ofSigner return the error of a key that a TPM or a signer holds.
func ofTPM(kind tpm.Kind, err error) error {
	return &attest.HardwareError{Path: tpm.Path, Err: &tpm.Error{Kind: kind, Op: "load the key", Err: err}}
}

func ofSigner(kind signer.Kind) error {
	const socket = "/run/dpsd-signer/device.sock"
	return &attest.HardwareError{Path: socket, Err: &signer.Error{Kind: kind, Path: socket, Err: errors.New("x")}}
}

func TestClassify(t *testing.T) {
	expired := x509.CertificateInvalidError{Reason: x509.Expired, Cert: &x509.Certificate{}, Detail: "current time 2026-11-23T00:00:00Z is after 2026-11-22T00:00:00Z"}
	future := x509.CertificateInvalidError{Reason: x509.Expired, Cert: &x509.Certificate{}, Detail: "current time 2026-11-23T00:00:00Z is before 2026-11-24T00:00:00Z"}
	dial := func(stage transport.Stage, err error) error {
		return At(fault.StageTCP, transport.Errors{{Protocol: transport.MQTT, Stage: stage, Address: "h:8883", Err: err}})
	}
	atHub := func(stage transport.Stage, err error) error {
		return At(fault.StageHub, transport.Errors{{Protocol: transport.HTTPS, Stage: stage, Address: "h.azure-devices.net:443", Err: err}})
	}
	connect := func(err error) error { return At(fault.StageConnect, err) }
	register := func(topic, body string) error { return At(fault.StageRegister, reply(t, topic, body)) }
	refused := &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	secret := func(err error) error {
		return At(fault.StageCredential, &attest.SecretError{Reference: attest.Reference{File: "/k"}, Err: err})
	}
	identity := func(err error) error {
		return At(fault.StageIdentity, &attest.IdentityError{Source: "%m", Err: err})
	}

	for _, tt := range []struct {
		name  string
		err   error
		code  fault.Code
		stage fault.Stage
	}{
		{"no route", dial(transport.StageTCP, &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ENETUNREACH)}), fault.NetworkUnreachable, fault.StageTCP},
		{"no route to the name server", dial(transport.StageName, &net.DNSError{Err: "dial udp 10.0.0.1:53: connect: network is unreachable", Name: "h"}), fault.NetworkUnreachable, fault.StageName},
		{"no server at the name server's port", dial(transport.StageName, &net.DNSError{Err: "read udp 127.0.0.1:53: read: connection refused", Name: "h"}), fault.ResolverMissing, fault.StageName},
		{"no /etc/resolv.conf", dial(transport.StageName, &transport.NoNameServerError{File: "/etc/resolv.conf", Problem: "does not exist", Err: &net.DNSError{Err: "dial udp [::1]:53: connect: cannot assign requested address", Name: "h"}}), fault.ResolverMissing, fault.StageName},
		{"no /etc/resolv.conf, for the proxy", dial(transport.StageProxy, &transport.NoNameServerError{File: "/etc/resolv.conf", Problem: "does not exist", Err: &net.DNSError{Err: "i/o timeout", IsTimeout: true, Name: "p"}}), fault.ResolverMissing, fault.StageProxy},
		{"no such name", dial(transport.StageName, &net.DNSError{Err: "no such host", Name: "h", IsNotFound: true}), fault.DNSFailed, fault.StageName},
		{"a silent name server", dial(transport.StageName, &transport.TimeoutError{After: time.Second, Err: &net.DNSError{Err: "i/o timeout", IsTimeout: true}}), fault.DNSFailed, fault.StageName},
		{"a key of another TPM", secret(ofTPM(tpm.Unusable, errors.New("x"))), fault.TPMKeyUnusable, fault.StageCredential},
		{"a curve that the TPM lacks", At(fault.StageCertificate, ofTPM(tpm.Unsupported, errors.New("x"))), fault.TPMKeyUnusable, fault.StageCertificate},
		{"a TPM key with a password", secret(ofTPM(tpm.Protected, errors.New("x"))), fault.TPMKeyUnusable, fault.StageCredential},
		{"a TPM key with a policy", secret(ofTPM(tpm.Policy, errors.New("x"))), fault.TPMKeyUnusable, fault.StageCredential},
		{"no TPM", secret(ofTPM(tpm.Unavailable, fs.ErrNotExist)), fault.TPMUnavailable, fault.StageCredential},
		{"a TPM that dpsd is not allowed to use", secret(ofTPM(tpm.Unavailable, fs.ErrPermission)), fault.TPMUnavailable, fault.StageCredential},
		{"a busy TPM", secret(ofTPM(tpm.Busy, syscall.EBUSY)), fault.TPMUnavailable, fault.StageCredential},
		{"a slow TPM", secret(ofTPM(tpm.Slow, context.DeadlineExceeded)), fault.TPMUnavailable, fault.StageCredential},
		{"another failure of the TPM", secret(ofTPM(tpm.Failed, io.ErrUnexpectedEOF)), fault.TPMUnavailable, fault.StageCredential},
		{"a locked TPM", secret(ofTPM(tpm.LockedOut, errors.New("x"))), fault.TPMLockedOut, fault.StageCredential},
		{"a damaged TSS2 file", secret(&tpm.Error{Kind: tpm.Damaged, Op: "read the key", Err: errors.New("x")}), fault.CredentialInvalid, fault.StageCredential},
		{"no signer", secret(ofSigner(signer.Absent)), fault.SignerFailed, fault.StageCredential},
		{"a signer that hangs", secret(ofSigner(signer.Slow)), fault.SignerFailed, fault.StageCredential},
		{"a signer that ends", secret(ofSigner(signer.Ended)), fault.SignerFailed, fault.StageCredential},
		{"a signer with an invalid answer", secret(ofSigner(signer.Malformed)), fault.SignerFailed, fault.StageCredential},
		{"a signer without its device", secret(ofSigner(signer.Unavailable)), fault.SignerFailed, fault.StageCredential},
		{"a signer with a wrong PIN", secret(ofSigner(signer.Refused)), fault.SignerRefused, fault.StageCredential},
		{"a signer of another user", secret(ofSigner(signer.Untrusted)), fault.SignerRefused, fault.StageCredential},
		{"a signer that dpsd is not allowed to use", secret(ofSigner(signer.Forbidden)), fault.SignerRefused, fault.StageCredential},
		{"a signer without a common scheme", secret(ofSigner(signer.Unsupported)), fault.SignerRefused, fault.StageCredential},
		{"refused", dial(transport.StageTCP, refused), fault.TCPRefused, fault.StageTCP},
		{"a silent peer", dial(transport.StageTCP, &transport.TimeoutError{After: time.Second, Err: context.DeadlineExceeded}), fault.ConnectTimeout, fault.StageTCP},
		{"a TLS peer that does not answer", dial(transport.StageTLS, &transport.TimeoutError{After: time.Second, Err: context.DeadlineExceeded}), fault.ConnectTimeout, fault.StageTLS},
		{"the proxy requires a password", dial(transport.StageProxy, &transport.ProxyError{Status: 407}), fault.ProxyAuth, fault.StageProxy},
		{"the proxy rejects the password", dial(transport.StageProxy, &transport.ProxyError{Status: 401}), fault.ProxyAuth, fault.StageProxy},
		{"the proxy forbids the connection", dial(transport.StageProxy, &transport.ProxyError{Status: 403}), fault.ProxyRefused, fault.StageProxy},
		{"the proxy cannot connect", dial(transport.StageProxy, &transport.ProxyError{Status: 502}), fault.ProxyUpstream, fault.StageProxy},
		{"the proxy's upstream is silent", dial(transport.StageProxy, &transport.ProxyError{Status: 504}), fault.ProxyUpstream, fault.StageProxy},
		{"the proxy does not support the HTTP version", dial(transport.StageProxy, &transport.ProxyError{Status: 505}), fault.ProxyRefused, fault.StageProxy},
		{"the proxy has an internal error", dial(transport.StageProxy, &transport.ProxyError{Status: 500}), fault.ProxyRefused, fault.StageProxy},
		{"the proxy requires NTLM", dial(transport.StageProxy, &transport.ProxyError{Status: 407, Schemes: []string{"Negotiate", "NTLM"}}), fault.ProxyAuthUnsupported, fault.StageProxy},
		{"the proxy accepts NTLM or Basic", dial(transport.StageProxy, &transport.ProxyError{Status: 407, Schemes: []string{"NTLM", "basic"}}), fault.ProxyAuth, fault.StageProxy},
		{"the proxy requires NTLM, with status 401", dial(transport.StageProxy, &transport.ProxyError{Status: 401, Schemes: []string{"Negotiate", "NTLM"}}), fault.ProxyAuthUnsupported, fault.StageProxy},
		{"the proxy accepts NTLM or Basic, with status 401", dial(transport.StageProxy, &transport.ProxyError{Status: 401, Schemes: []string{"NTLM", "BASIC"}}), fault.ProxyAuth, fault.StageProxy},
		{"the proxy expects TLS", dial(transport.StageProxy, transport.ErrProxyExpectsTLS), fault.ProxyScheme, fault.StageProxy},
		{"the proxy is a portal", dial(transport.StageProxy, &transport.ProxyError{Status: 302, Location: "http://portal/"}), fault.CaptivePortal, fault.StageProxy},
		{"the proxy reports a portal with status 511", dial(transport.StageProxy, &transport.ProxyError{Status: 511}), fault.CaptivePortal, fault.StageProxy},
		{"the proxy closes the connection", dial(transport.StageProxy, fmt.Errorf("reading the proxy's reply: %w", io.EOF)), fault.ProxyRefused, fault.StageProxy},
		{"the proxy does not use TLS", dial(transport.StageProxy, &transport.NotTLSError{First: []byte("HTTP/1.1 400"), Err: tls.RecordHeaderError{}}), fault.ProxyScheme, fault.StageProxy},
		{"the proxy is down", dial(transport.StageProxy, refused), fault.ProxyUnreachable, fault.StageProxy},
		{"the proxy's name does not exist", dial(transport.StageProxy, &net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", Name: "p", IsNotFound: true}}), fault.ProxyUnreachable, fault.StageProxy},
		{"no route to the name server for the proxy's name", dial(transport.StageProxy, &net.OpError{Op: "dial", Err: &net.DNSError{Err: "read udp 127.0.0.1:53: read: connection refused", Name: "p"}}), fault.ResolverMissing, fault.StageProxy},
		{"the proxy is behind a firewall", dial(transport.StageProxy, &transport.TimeoutError{After: time.Second, Err: &net.OpError{Op: "dial", Err: context.DeadlineExceeded}}), fault.ProxyUnreachable, fault.StageProxy},
		{"no route to the proxy", dial(transport.StageProxy, &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ENETUNREACH)}), fault.NetworkUnreachable, fault.StageProxy},
		{"the proxy does not answer", dial(transport.StageProxy, &transport.TimeoutError{After: time.Second, Err: context.DeadlineExceeded}), fault.ConnectTimeout, fault.StageProxy},
		{"the proxy's certificate is by another issuer, even one of the service's", dial(transport.StageProxy, presented("proxy.test", "ACME", x509.UnknownAuthorityError{})), fault.ProxyUntrusted, fault.StageProxy},
		{"the proxy's certificate is for another name", dial(transport.StageProxy, presented("proxy.test", "ACME", x509.HostnameError{Certificate: &x509.Certificate{}, Host: "proxy.test"})), fault.ProxyUntrusted, fault.StageProxy},
		{"the proxy's certificate has expired", dial(transport.StageProxy, presented("proxy.test", "ACME", expired)), fault.ProxyUntrusted, fault.StageProxy},
		{"the proxy's certificate is not yet valid", dial(transport.StageProxy, presented("proxy.test", "ACME", future)), fault.ClockImplausible, fault.StageProxy},
		{"the roots of the proxy are missing", dial(transport.StageProxy, &fs.PathError{Op: "open", Path: "/p.pem", Err: fs.ErrNotExist}), fault.CAUnreadable, fault.StageProxy},
		{"the roots of the proxy are unusable", dial(transport.StageProxy, &fs.PathError{Op: "read", Path: "/p.pem", Err: pemfile.ErrNotCertificate}), fault.CAUnreadable, fault.StageProxy},
		{"the proxy's address is invalid", dial(transport.StageProxy, fmt.Errorf("HTTPS_PROXY: %w", transport.ErrProxyAddress)), fault.ProxyAddress, fault.StageProxy},
		{"the proxy's password is missing", At(fault.StageProxy, &attest.SecretError{Reference: attest.Reference{File: "/p"}, Err: fs.ErrNotExist}), fault.CredentialUnreadable, fault.StageProxy},
		{"the proxy's password is unusable", At(fault.StageProxy, &attest.SecretError{Reference: attest.Reference{File: "/p"}, Err: attest.ErrNotPassword}), fault.CredentialInvalid, fault.StageProxy},
		{"an inspector presents the service's name", dial(transport.StageTLS, presented(global, "ACME Inspection", x509.UnknownAuthorityError{})), fault.TLSIntercepted, fault.StageTLS},
		{"an inspector in China", dial(transport.StageTLS, presented("x.azure-devices-provisioning.cn", "ACME Inspection", x509.UnknownAuthorityError{})), fault.TLSIntercepted, fault.StageTLS},
		{"Microsoft itself, with outdated roots on the gateway", dial(transport.StageTLS, presented(global, "Microsoft Corporation", x509.UnknownAuthorityError{})), fault.TLSUntrusted, fault.StageTLS},
		{"DigiCert, with outdated roots on the gateway", dial(transport.StageTLS, presented(global, "DigiCert Inc", x509.UnknownAuthorityError{})), fault.TLSUntrusted, fault.StageTLS},
		{"an issuer without a name", dial(transport.StageTLS, presented(global, "", x509.UnknownAuthorityError{})), fault.TLSUntrusted, fault.StageTLS},
		{"another issuer for an endpoint that is not Azure's", dial(transport.StageTLS, presented("azure-devices-provisioning.net.test", "ACME", x509.UnknownAuthorityError{})), fault.TLSUntrusted, fault.StageTLS},
		{"an inspector's certificate that has expired", dial(transport.StageTLS, presented(global, "ACME Inspection", expired)), fault.TLSExpired, fault.StageTLS},
		{"a page instead of TLS", dial(transport.StageTLS, &transport.NotTLSError{First: []byte("<html>"), Err: tls.RecordHeaderError{}}), fault.CaptivePortal, fault.StageTLS},
		{"a page instead of the upgrade", dial(transport.StageWebSocket, &transport.UpgradeError{Status: 200, ContentType: "text/html"}), fault.CaptivePortal, fault.StageWebSocket},
		{"the network requires a login", dial(transport.StageWebSocket, &transport.UpgradeError{Status: 511, ContentType: "text/html"}), fault.CaptivePortal, fault.StageWebSocket},
		{"a page that forbids the upgrade", dial(transport.StageWebSocket, &transport.UpgradeError{Status: 403, ContentType: "text/html"}), fault.WebSocketRefused, fault.StageWebSocket},
		{"a portal at 443 while 8883 times out", At(fault.StageTCP, transport.Errors{
			{Protocol: transport.MQTT, Stage: transport.StageTCP, Err: &transport.TimeoutError{After: time.Second, Err: context.DeadlineExceeded}},
			{Protocol: transport.WebSocket, Stage: transport.StageTLS, Err: &transport.NotTLSError{First: []byte("HTTP/1.1 302 Found"), Err: tls.RecordHeaderError{}}},
		}), fault.CaptivePortal, fault.StageTLS},
		{"a proxy that blocks 8883 and redirects 443 to a portal", At(fault.StageTCP, transport.Errors{
			{Protocol: transport.MQTT, Stage: transport.StageProxy, Err: &transport.ProxyError{Status: 403}},
			{Protocol: transport.WebSocket, Stage: transport.StageWebSocket, Err: &transport.UpgradeError{Status: 511}},
		}), fault.CaptivePortal, fault.StageWebSocket},
		{"ca_file is missing", dial(transport.StageCA, fs.ErrNotExist), fault.CAUnreadable, fault.StageTLS},
		{"unknown issuer", dial(transport.StageTLS, x509.UnknownAuthorityError{}), fault.TLSUntrusted, fault.StageTLS},
		{"expired server certificate", dial(transport.StageTLS, x509.CertificateInvalidError{Cert: &x509.Certificate{}, Reason: x509.Expired, Detail: "current time x is after y"}), fault.TLSExpired, fault.StageTLS},
		{"a server certificate that is not yet valid", dial(transport.StageTLS, x509.CertificateInvalidError{Cert: &x509.Certificate{}, Reason: x509.Expired, Detail: "current time x is before y"}), fault.ClockImplausible, fault.StageTLS},
		{"reset in the handshake", dial(transport.StageTLS, &net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ECONNRESET)}), fault.ConnectionLost, fault.StageTLS},
		{"a handshake that fails for another reason", dial(transport.StageTLS, errors.New("tls: something")), fault.TLSFailed, fault.StageTLS},
		{"an alert about the version of TLS", dial(transport.StageTLS, &transport.RefusedError{Err: &net.OpError{Op: "remote error", Err: errors.New("tls: protocol version not supported")}}), fault.TLSVersion, fault.StageTLS},
		{"a peer that does not use TLS", dial(transport.StageTLS, &transport.NotTLSError{First: []byte("220 mail.test ESMTP"), Err: tls.RecordHeaderError{}}), fault.NotTLS, fault.StageTLS},
		{"reset before the connection is open", dial(transport.StageTCP, &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNRESET)}), fault.ConnectionLost, fault.StageTCP},
		{"reset in the upgrade", dial(transport.StageWebSocket, &net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ECONNRESET)}), fault.ConnectionLost, fault.StageWebSocket},
		{"a reply to the upgrade that is not HTTP", dial(transport.StageWebSocket, errors.New("malformed HTTP response")), fault.WebSocketRefused, fault.StageWebSocket},
		{"an unknown cause of transport", dial(transport.StageTCP, errors.New("?")), fault.Internal, fault.StageTCP},
		{"a name server that does not answer before the end of the attempt", dial(transport.StageName, context.DeadlineExceeded), fault.DNSFailed, fault.StageName},
		{"the upgrade is redirected", dial(transport.StageWebSocket, &transport.UpgradeError{Status: 302, Location: "http://portal/"}), fault.CaptivePortal, fault.StageWebSocket},
		{"the upgrade is forbidden", dial(transport.StageWebSocket, &transport.UpgradeError{Status: 403}), fault.WebSocketRefused, fault.StageWebSocket},
		{"two protocols: the one that got further counts", At(fault.StageTCP, transport.Errors{
			{Stage: transport.StageTCP, Err: refused}, {Stage: transport.StageTLS, Err: x509.HostnameError{Certificate: &x509.Certificate{}, Host: "h"}},
		}), fault.TLSWrongHost, fault.StageTLS},
		{"two protocols that got equally far: the first counts", At(fault.StageTCP, transport.Errors{
			{Stage: transport.StageTCP, Err: refused}, {Stage: transport.StageTCP, Err: &transport.TimeoutError{Err: context.DeadlineExceeded}},
		}), fault.TCPRefused, fault.StageTCP},

		{"CONNACK 1", connect(&mqttv3.ConnackError{ReturnCode: 1}), fault.ConnackRejected, fault.StageConnect},
		{"CONNACK 2", connect(&mqttv3.ConnackError{ReturnCode: 2}), fault.ConnackRejected, fault.StageConnect},
		{"CONNACK 3 is not a refused credential", connect(&mqttv3.ConnackError{ReturnCode: 3}), fault.ConnackUnavailable, fault.StageConnect},
		{"CONNACK 4", connect(&mqttv3.ConnackError{ReturnCode: 4}), fault.ConnackRefused, fault.StageConnect},
		{"CONNACK 5", connect(&mqttv3.ConnackError{ReturnCode: 5}), fault.ConnackRefused, fault.StageConnect},
		{"CONNACK 99", connect(&mqttv3.ConnackError{ReturnCode: 99}), fault.ProtocolViolation, fault.StageConnect},
		{"HTTP inside TLS", connect(&mqttv3.NotMQTTError{First: []byte("HTTP/1.1 400")}), fault.NotMQTT, fault.StageConnect},
		{"an alert about a certificate before the server is verified", dial(transport.StageTLS, fmt.Errorf("before: %w", &net.OpError{Op: "remote error", Err: errors.New("tls: bad certificate")})), fault.TLSFailed, fault.StageTLS},
		{"an alert about a certificate that was not requested", dial(transport.StageTLS, &transport.RefusedError{Err: &net.OpError{Op: "remote error", Err: errors.New("tls: unknown certificate authority")}}), fault.TLSFailed, fault.StageTLS},
		{"an alert about a requested certificate", dial(transport.StageTLS, &transport.RefusedError{Certificate: true, Err: &net.OpError{Op: "remote error", Err: errors.New("tls: unknown certificate authority")}}), fault.CertificateRefused, fault.StageTLS},
		{"another alert after a requested certificate", dial(transport.StageTLS, &transport.RefusedError{Certificate: true, Err: &net.OpError{Op: "remote error", Err: errors.New("tls: internal error")}}), fault.TLSFailed, fault.StageTLS},
		{"an alert instead of the CONNACK", connect(fmt.Errorf("%w: %w", mqttv3.ErrClosed, &transport.RefusedError{Certificate: true, Err: &net.OpError{Op: "remote error", Err: errors.New("tls: bad certificate")}})), fault.CertificateRefused, fault.StageTLS},
		{"an alert instead of the CONNACK, about a certificate that was not sent", connect(fmt.Errorf("%w: %w", mqttv3.ErrClosed, &transport.RefusedError{Err: &net.OpError{Op: "remote error", Err: errors.New("tls: certificate required")}})), fault.TLSFailed, fault.StageTLS},
		{"a violation of the WebSocket protocol", At(fault.StagePoll, fmt.Errorf("%w: %w", mqttv3.ErrClosed, &transport.FrameError{Problem: "received unknown opcode 3"})), fault.ProtocolViolation, fault.StagePoll},
		{"no CONNACK", connect(&mqttv3.TimeoutError{Exchange: "CONNACK"}), fault.NoReply, fault.StageConnect},
		{"end of the stream", connect(fmt.Errorf("%w: %w", mqttv3.ErrClosed, io.EOF)), fault.ConnectionLost, fault.StageConnect},
		{"end of a raw stream", connect(io.EOF), fault.ConnectionLost, fault.StageConnect},
		{"SUBACK 0x80", At(fault.StageSubscribe, &mqttv3.SubackError{Filter: "x"}), fault.NotDPS, fault.StageSubscribe},
		{"no route while waiting for a reply", At(fault.StagePoll, &net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.EHOSTUNREACH)}), fault.NetworkUnreachable, fault.StagePoll},
		{"a peer that does not read", At(fault.StageRegister, &net.OpError{Op: "write", Err: os.ErrDeadlineExceeded}), fault.NoReply, fault.StageRegister},
		{"the deadline of an attempt", At(fault.StageRegister, context.DeadlineExceeded), fault.NoReply, fault.StageRegister},
		{"a WebSocket message of text", At(fault.StagePoll, fmt.Errorf("%w: %w", mqttv3.ErrClosed, transport.ErrNotBinary)), fault.ProtocolViolation, fault.StagePoll},
		{"a packet that violates MQTT", At(fault.StagePoll, &mqttv3.ProtocolError{}), fault.ProtocolViolation, fault.StagePoll},
		{"an argument that is invalid in MQTT", At(fault.StageRegister, mqttv3.ErrInvalid), fault.RequestRefused, fault.StageRegister},
		{"another alert instead of the CONNACK", connect(fmt.Errorf("%w: %w", mqttv3.ErrClosed, &net.OpError{Op: "remote error", Err: errors.New("tls: internal error")})), fault.TLSFailed, fault.StageTLS},
		{"another alert after the CONNACK", At(fault.StagePoll, fmt.Errorf("%w: %w", mqttv3.ErrClosed, &net.OpError{Op: "remote error", Err: errors.New("tls: internal error")})), fault.ConnectionLost, fault.StagePoll},
		{"a packet too large", At(fault.StageRegister, mqttv3.ErrPacketTooLarge), fault.ProtocolViolation, fault.StageRegister},

		{"401", register("$dps/registrations/res/401/?$rid=1", `{"errorCode":401002,"trackingId":"t","message":"Unauthorized"}`), fault.Unauthorized, fault.StageRegister},
		{"404", register("$dps/registrations/res/404/?$rid=1", `{"errorCode":404201}`), fault.EnrollmentNotFound, fault.StageRegister},
		{"400", register("$dps/registrations/res/400/?$rid=1", `{"errorCode":400004}`), fault.RequestRefused, fault.StageRegister},
		{"409", register("$dps/registrations/res/409/?$rid=1", `{}`), fault.RequestRefused, fault.StageRegister},
		{"429", register("$dps/registrations/res/429/?$rid=1&retry-after=30", ``), fault.Throttled, fault.StageRegister},
		{"503", register("$dps/registrations/res/503/?$rid=1", ``), fault.ServiceError, fault.StageRegister},
		{"404 to a poll", At(fault.StagePoll, &dps.ServiceError{Request: dps.RequestPoll, Status: 404}), fault.OperationLost, fault.StagePoll},
		{"200 disabled", register("$dps/registrations/res/200/?$rid=1", `{"operationId":"","status":"disabled"}`), fault.EnrollmentDisabled, fault.StageRegister},
		{"200 failed", register("$dps/registrations/res/200/?$rid=1", `{"operationId":"5.1","status":"failed","registrationState":{"registrationId":"gw-1","status":"failed","errorCode":400207,"errorMessage":"x"}}`), fault.AllocationFailed, fault.StageRegister},
		{"200 unassigned", register("$dps/registrations/res/200/?$rid=1", `{"operationId":"5.1","status":"unassigned"}`), fault.AllocationFailed, fault.StageRegister},
		{"a failed operation with the hub's 401 is not a refused credential", register("$dps/registrations/res/200/?$rid=1", `{"operationId":"5.1","status":"failed","registrationState":{"status":"failed","errorCode":401002,"errorMessage":"x"}}`), fault.AllocationFailed, fault.StageRegister},
		{"truncated JSON", register("$dps/registrations/res/200/?$rid=1", `{"operationId":"5.1","sta`), fault.MalformedReply, fault.StageRegister},
		{"no reply", At(fault.StagePoll, dps.ErrNoReply), fault.NoReply, fault.StagePoll},

		{"the key file is missing", secret(fs.ErrNotExist), fault.CredentialUnreadable, fault.StageCredential},
		{"the key's directory is a file", secret(syscall.ENOTDIR), fault.CredentialUnreadable, fault.StageCredential},
		{"a disk error while reading the key", secret(syscall.EIO), fault.CredentialUnreadable, fault.StageCredential},
		{"no permission to read the key file", secret(fs.ErrPermission), fault.CredentialUnreadable, fault.StageCredential},
		{"the credential is sealed", secret(attest.ErrEncrypted), fault.CredentialEncrypted, fault.StageCredential},
		{"the key is not base64", secret(attest.ErrNotBase64), fault.CredentialInvalid, fault.StageCredential},
		{"the CN differs", secret(attest.ErrCommonName), fault.CredentialInvalid, fault.StageCredential},
		{"no machine ID yet", identity(attest.ErrNoMachineID), fault.InputUnreadable, fault.StageIdentity},
		{"an invalid serial number", identity(attest.ErrRegistrationID), fault.InputInvalid, fault.StageIdentity},
		{"a payload that is not an object", At(fault.StageIdentity, &PayloadError{"/p", dps.ErrPayload}), fault.InputInvalid, fault.StageIdentity},
		{"a payload that is missing", At(fault.StageIdentity, &PayloadError{"/p", fs.ErrNotExist}), fault.InputUnreadable, fault.StageIdentity},
		{"a payload that the protocol does not take", At(fault.StageRegister, dps.ErrPayload), fault.InputInvalid, fault.StageIdentity},

		{"no certificate is issued", At(fault.StageCertificate, certificate.ErrNotIssued), fault.CertificateNotIssued, fault.StageCertificate},
		{"the certificate request is refused", At(fault.StageCertificate, &certificate.RefusedError{Err: register("$dps/registrations/res/400/?$rid=1", `{"errorCode":400004}`)}), fault.CertificateNotIssued, fault.StageCertificate},
		{"the registration ID is too long for a certificate", At(fault.StageCertificate, certificate.CheckRegistrationID(strings.Repeat("a", 65))), fault.InputInvalid, fault.StageCertificate},
		{"the issued chain is unusable", At(fault.StageCertificate, &certificate.RejectedError{Reason: "it is for a different key"}), fault.CertificateRejected, fault.StageCertificate},
		{"the issued key cannot be read", At(fault.StageCertificate, &store.PairError{Path: "/s/certificate/1/key.pem", Err: syscall.EACCES}), fault.CertificateUnreadable, fault.StageCertificate},
		{"no space for the key of a request", At(fault.StageCertificate, &store.WriteError{Path: "/s/certificate/pending/key.pem", Err: syscall.ENOSPC}), fault.StateUnwritable, fault.StageState},
		{"the hub refuses the device", &hub.Error{Status: 401, Code: 401002}, fault.HubRefused, fault.StageHub},
		{"the device is disabled in the hub", At(fault.StageHub, &hub.Error{Status: 403}), fault.HubRefused, fault.StageHub},
		{"the hub does not know the device", &hub.Error{Status: 404, Code: 404001}, fault.HubRefused, fault.StageHub},
		{"the hub refuses the certificate in the TLS handshake", atHub(transport.StageTLS, &transport.RefusedError{Certificate: true, Err: &net.OpError{Op: "remote error", Err: errors.New("tls: bad certificate")}}), fault.HubRefused, fault.StageHub},
		{"the hub throttles", &hub.Error{Status: 429, RetryAfter: time.Minute}, fault.HubThrottled, fault.StageHub},
		{"the hub throttles a change of a module", &modules.RefusedError{Module: "m", Err: &hub.Error{Status: 429}}, fault.HubThrottled, fault.StageHub},
		{"the hub has an internal error", &hub.Error{Status: 500}, fault.HubUnavailable, fault.StageHub},
		{"the hub redirects", &hub.Error{Status: 302}, fault.HubUnavailable, fault.StageHub},
		{"nothing listens on the hub's port", atHub(transport.StageTCP, refused), fault.HubUnavailable, fault.StageHub},
		{"the hub does not answer", atHub(transport.StageHTTP, &transport.TimeoutError{After: time.Second, Err: context.DeadlineExceeded}), fault.HubUnavailable, fault.StageHub},
		{"the hub ends the connection", atHub(transport.StageHTTP, io.ErrUnexpectedEOF), fault.HubUnavailable, fault.StageHub},
		{"an answer that is not HTTP", atHub(transport.StageHTTP, errors.New("malformed HTTP response")), fault.HubUnavailable, fault.StageHub},
		{"an answer that is not that of a hub", At(fault.StageHub, &modules.AnswerError{Err: io.EOF}), fault.HubUnavailable, fault.StageHub},
		{"the hub's name is gone", atHub(transport.StageName, &net.DNSError{Err: "no such host", IsNotFound: true}), fault.DNSFailed, fault.StageHub},
		{"no route to the hub", atHub(transport.StageTCP, &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ENETUNREACH)}), fault.NetworkUnreachable, fault.StageHub},
		{"the authority of the hub is not trusted", atHub(transport.StageTLS, presented("h.azure-devices.net", "ACME Inspection", x509.UnknownAuthorityError{})), fault.TLSUntrusted, fault.StageHub},
		{"the proxy refuses the hub's port", atHub(transport.StageProxy, &transport.ProxyError{Status: 403}), fault.ProxyRefused, fault.StageHub},
		{"too many modules", &modules.RefusedError{Module: "m", Err: &hub.Error{Status: 413, Code: 413003}}, fault.ModuleRefused, fault.StageHub},
		{"a module of another program", &modules.RefusedError{Module: "m", Reason: "x"}, fault.ModuleRefused, fault.StageHub},
		{"modules.json is damaged", At(fault.StageHub, &store.ModulesError{Path: "/s/modules.json", Err: io.EOF}), fault.ModulesUnreadable, fault.StageHub},
		{"a hub without module identities", &modules.ProfileError{Profile: "mqttV5"}, fault.ModuleRefused, fault.StageHub},
		{"a full disk", At(fault.StageState, &store.WriteError{Path: "/s", Err: syscall.ENOSPC}), fault.StateUnwritable, fault.StageState},
		{"a covered state directory", At(fault.StageState, &store.WriteError{Path: "/s", Err: &store.CoveredError{Directory: "/s"}}), fault.StateUnwritable, fault.StageState},
		{"a newer schema", At(fault.StageState, &store.WriteError{Path: "/s", Err: &store.NewerSchemaError{Schema: 2}}), fault.StateNewerSchema, fault.StageState},
		{"an assignment that cannot be stored", At(fault.StageState, &store.InvalidError{}), fault.MalformedReply, fault.StagePoll},
		{"an error without a stage", errors.New("?"), fault.Internal, fault.StageConfiguration},
		{"a second instance", &store.LockedError{PID: 7}, fault.StateLocked, fault.StageState},
		{"an unknown error is our own defect", At(fault.StagePoll, errors.New("?")), fault.Internal, fault.StagePoll},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := Classify(tt.err)
			if f.Code != tt.code || f.Stage != tt.stage {
				t.Errorf("%v: got %s in stage %s, want %s in %s", tt.err, f.Code, f.Stage, tt.code, tt.stage)
			}
			if f.Class != fault.Describe(tt.code).Class {
				t.Errorf("class %s differs from the catalogue", f.Class)
			}
			if f.Err == nil {
				t.Error("the cause is lost")
			}
		})
	}
	if f := Classify(At(fault.StagePoll, nil)); f.Code != "" {
		t.Errorf("nil must not be a fault, got %s", f.Code)
	}
	if f := fault.New(fault.Throttled, fault.StagePoll, io.EOF); Classify(fmt.Errorf("again: %w", f)) != f {
		t.Error("the fault of a fault must be the same")
	}
}

func TestANameOfAzureThatLeadsToThisGatewayIsBlocked(t *testing.T) {
	refused := &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	at443 := func(host, remote string, stage transport.Stage, err error) transport.Errors {
		addr, e := net.ResolveTCPAddr("tcp", remote)
		if e != nil {
			t.Fatal(e)
		}
		return transport.Errors{{Protocol: transport.WebSocket, Stage: stage, Address: host + ":443", Remote: addr, Err: err}}
	}
	page := presented("gateway.local", "ACME", x509.UnknownAuthorityError{}).(*transport.CertificateError) //nolint:errorlint // it is created here
	page.Host = global
	hub := "h.device.azure-devices.us"
	for _, tt := range []struct {
		name string
		err  transport.Errors
		code fault.Code
	}{
		{"refused at 0.0.0.0", at443(global, "0.0.0.0:443", transport.StageTCP, refused), fault.DNSBlocked},
		{"refused at 127.0.0.1", at443(global, "127.0.0.1:443", transport.StageTCP, refused), fault.DNSBlocked},
		{"refused at ::1", at443(hub, "[::1]:443", transport.StageTCP, refused), fault.DNSBlocked},
		{"the gateway's own web page answers", at443(global, "127.0.0.1:443", transport.StageTLS, page), fault.DNSBlocked},
		{"an inspector on this gateway", at443(global, "127.0.0.1:443", transport.StageTLS, presented(global, "ACME", x509.UnknownAuthorityError{})), fault.TLSIntercepted},
		{"refused elsewhere", at443(global, "192.0.2.1:443", transport.StageTCP, refused), fault.TCPRefused},
		{"a simulator that does not run", at443("dps.test", "127.0.0.1:443", transport.StageTCP, refused), fault.TCPRefused},
		{"a name that is only like Azure's", at443("azure-devices.net.test", "127.0.0.1:443", transport.StageTCP, refused), fault.TCPRefused},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := Classify(At(fault.StageTCP, tt.err))
			if f.Code != tt.code || (tt.code == fault.DNSBlocked) != strings.Contains(f.Error(), "resolves to this gateway itself") {
				t.Errorf("%v", f)
			}
		})
	}
}

func TestTheAdviceForASovereignCloudIsItsRoot(t *testing.T) {
	for host, advised := range map[string]bool{
		global: false, "x.azure-devices-provisioning.us": true, "x.azure-devices-provisioning.cn": true, "h.azure-devices.us": true, "dps.test": false,
	} {
		f := Classify(transport.Errors{{Protocol: transport.MQTT, Stage: transport.StageTLS, Address: host + ":8883", Err: presented(host, "DigiCert Inc", x509.UnknownAuthorityError{})}})
		if f.Code != fault.TLSUntrusted || strings.Contains(f.Advice(), "DigiCertGlobalRootCA") != advised {
			t.Errorf("%s: %s: %s", host, f.Code, f.Advice())
		}
	}
}

func TestAnAPIVersionThatTheServiceRefusesIsNamedInTheAdvice(t *testing.T) {
	f := Classify(At(fault.StageRegister, reply(t, "$dps/registrations/res/400/?$rid=1", `{"errorCode":400004,"message":"Unsupported API version 2021-06-01."}`)))
	if f.Code != fault.RequestRefused || !strings.Contains(f.Advice(), "Remove api_version") {
		t.Errorf("%s: %s", f.Code, f.Advice())
	}
	f = Classify(At(fault.StageRegister, reply(t, "$dps/registrations/res/400/?$rid=1", `{"errorCode":400004,"message":"Invalid registration ID."}`)))
	if f.Code != fault.RequestRefused || strings.Contains(f.Advice(), "Remove api_version") {
		t.Errorf("%s: %s", f.Code, f.Advice())
	}
}

func TestPort443IsAdvisedOnlyIfItWasNotTried(t *testing.T) {
	refused := &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	silent := &transport.TimeoutError{After: time.Second, Err: context.DeadlineExceeded}
	mqtt := func(address string, stage transport.Stage, err error) *transport.Error {
		return &transport.Error{Protocol: transport.MQTT, Stage: stage, Address: address, Err: err}
	}
	webSocket := func(stage transport.Stage, err error) *transport.Error {
		return &transport.Error{Protocol: transport.WebSocket, Stage: stage, Address: "h:443", Err: err}
	}
	for _, tt := range []struct {
		name    string
		err     transport.Errors
		code    fault.Code
		advised bool
	}{
		{"8883 refused, nothing else tried", transport.Errors{mqtt("h:8883", transport.StageTCP, refused)}, fault.TCPRefused, true},
		{"no address for 8883, protocol unknown", transport.Errors{{Stage: transport.StageTCP, Address: "h:8883", Err: refused}}, fault.TCPRefused, false},
		{"8883 and 443 refused", transport.Errors{mqtt("h:8883", transport.StageTCP, refused), webSocket(transport.StageTCP, refused)}, fault.TCPRefused, false},
		{"443 refused", transport.Errors{webSocket(transport.StageTCP, refused)}, fault.TCPRefused, false},
		{"443 refused, with mqtt_port 443", transport.Errors{mqtt("h:443", transport.StageTCP, refused)}, fault.TCPRefused, false},
		{"8883 times out, nothing else tried", transport.Errors{mqtt("h:8883", transport.StageTCP, silent)}, fault.ConnectTimeout, true},
		{"8883 and 443 time out", transport.Errors{mqtt("h:8883", transport.StageTCP, silent), webSocket(transport.StageTCP, silent)}, fault.ConnectTimeout, false},
		{"the proxy refuses 8883, nothing else tried", transport.Errors{mqtt("h:8883", transport.StageProxy, &transport.ProxyError{Status: 403})}, fault.ProxyRefused, true},
		{"the proxy refuses both", transport.Errors{mqtt("h:8883", transport.StageProxy, &transport.ProxyError{Status: 403}), webSocket(transport.StageProxy, &transport.ProxyError{Status: 403})}, fault.ProxyRefused, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := Classify(At(fault.StageTCP, tt.err))
			if f.Code != tt.code || strings.Contains(f.Advice(), "443") != tt.advised {
				t.Errorf("%s: %s", f.Code, f.Advice())
			}
		})
	}
}

func TestClassifyKeepsTheDetailsOfTheService(t *testing.T) {
	f := Classify(At(fault.StageRegister, reply(t, "$dps/registrations/res/429/?$rid=1&retry-after=30", `{"errorCode":429001,"trackingId":"4c7e","message":"Too many"}`)))
	if f.ServiceCode != 429001 || f.TrackingID != "4c7e" || f.RetryAfter != 30*time.Second {
		t.Errorf("errorCode %d, trackingId %q, retry-after %s", f.ServiceCode, f.TrackingID, f.RetryAfter)
	}
	f = Classify(At(fault.StageRegister, reply(t, "$dps/registrations/res/200/?$rid=1&retry-after=600", `{`)))
	if f.RetryAfter != 10*time.Minute {
		t.Errorf("a malformed reply loses its Retry-After: %s", f.RetryAfter)
	}
}

func TestARefusedCredentialIsExplainedByItsCircumstances(t *testing.T) {
	unauthorized := At(fault.StageRegister, reply(t, "$dps/registrations/res/401/?$rid=1", `{"errorCode":401000}`))
	expired, early := &attest.CertificateError{Err: attest.ErrExpired}, &attest.CertificateError{Err: attest.ErrNotYetValid}
	doubt := &attest.Doubt{Mistake: &input.Mistake{What: "the key has 64 bytes"}}
	for _, tt := range []struct {
		name          string
		circumstances Circumstances
		code          fault.Code
		end           string // the end of the cause
	}{
		{"nothing", Circumstances{}, fault.Unauthorized, "401000"},
		{"an inspector, whatever the clock and the certificate", Circumstances{Inspector: "CN=ACME", Implausible: true, Validity: expired, Doubt: doubt}, fault.TLSIntercepted, `401000; "CN=ACME" inspects this connection`},
		{"a clock before the build, whatever the certificate", Circumstances{Implausible: true, Validity: expired}, fault.ClockImplausible, "401000"},
		{"a certificate that is not yet valid", Circumstances{Validity: early}, fault.ClockImplausible, "401000"},
		{"an expired certificate", Circumstances{Validity: expired, Purpose: attest.ErrNotForClients}, fault.CertificateExpired, "401000; " + expired.Error()},
		{"a doubtful key", Circumstances{Doubt: doubt, Purpose: attest.ErrNotForClients}, fault.Unauthorized, "401000; the key has 64 bytes"},
		{"a certificate that is not for clients", Circumstances{Purpose: attest.ErrNotForClients}, fault.Unauthorized, "401000; the certificate is not for client authentication"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := tt.circumstances.Classify(unauthorized)
			if f.Code != tt.code || f.Class != fault.Describe(tt.code).Class || !strings.HasSuffix(f.Err.Error(), tt.end) {
				t.Errorf("got %s (%s): %v", f.Code, f.Class, f.Err)
			}
			var said *dps.ServiceError
			if !errors.As(f.Err, &said) {
				t.Error("the answer of the service is lost")
			}
			if f := tt.circumstances.Classify(At(fault.StageConnect, io.EOF)); f.Code != fault.ConnectionLost || f.Err.Error() != "EOF" {
				t.Errorf("a lost connection is explained too: %v", f)
			}
		})
	}
}

func TestAnInspectorIsAnIssuerThatDoesNotIssueForAzure(t *testing.T) {
	for _, tt := range []struct {
		name, host string
		issuer     pkix.Name
		want       string
	}{
		{"another issuer", global, pkix.Name{CommonName: "ACME Inspection"}, "CN=ACME Inspection"},
		{"another issuer in another cloud", "X.Azure-Devices-Provisioning.CN", pkix.Name{Organization: []string{"ACME"}}, "O=ACME"},
		{"Microsoft", global, pkix.Name{CommonName: "CA 4", Organization: []string{"Microsoft Corporation"}}, ""},
		{"DigiCert, by its common name", global, pkix.Name{CommonName: "DIGICERT TLS CA"}, ""},
		{"an issuer without a name", global, pkix.Name{Country: []string{"DE"}}, ""},
		{"another issuer for a hub", "h.azure-devices.net", pkix.Name{CommonName: "ACME"}, ""},
		{"another issuer for a simulator", "dps.test", pkix.Name{CommonName: "ACME"}, ""},
		{"a name of 300 bytes is truncated", global, pkix.Name{CommonName: strings.Repeat("a", 297)}, "CN=" + strings.Repeat("a", 238) + "… (300 bytes)"},
		{"a name of 256 bytes is kept", global, pkix.Name{CommonName: strings.Repeat("a", 253)}, "CN=" + strings.Repeat("a", 253)},
	} {
		if got := Inspector(tt.host, tt.issuer); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestANameOutsideAzureIsComparedWithThePublicCloud(t *testing.T) {
	if c := PublicCloud(); c.Domain != "net" || c.Sovereign || len(c.Roots) == 0 {
		t.Errorf("the public cloud is %+v", c)
	}
	for host, want := range map[string]string{
		global: "net", "H.Azure-Devices.NET": "net", "x.azure-devices-provisioning.us": "us", "h.azure-devices.cn": "cn",
		"dps.test": "", "azure-devices.net": "", "x.azure-devices.net.test": "", "x.azure-devices.de": "",
	} {
		if c, found := CloudOf(host); c.Domain != want || found != (want != "") {
			t.Errorf("%s is of the cloud %+v", host, c)
		}
	}
}

func TestADoubtAboutTheKeyExplainsARefusalAndChangesTheAdvice(t *testing.T) {
	doubt := &attest.Doubt{Mistake: &input.Mistake{What: "the key is encoded in base64 twice", Command: "base64 -d FILE", File: "/k"}}
	perhaps := &attest.Doubt{Mistake: &input.Mistake{What: "the key has 64 bytes", Command: "dpsd derive-key <FILE", File: "/k"}, Group: true}
	unauthorized := At(fault.StageRegister, reply(t, "$dps/registrations/res/401/?$rid=1", `{"errorCode":401000}`))
	for _, tt := range []struct {
		name          string
		circumstances Circumstances
		err           error
		code          fault.Code
		cause         string // its end
		advice, then  string
	}{
		{"a 401", Circumstances{Doubt: doubt}, unauthorized, fault.Unauthorized, "; the key is encoded in base64 twice", "base64 -d /k", ""},
		{"a refused CONNECT", Circumstances{Doubt: doubt}, At(fault.StageConnect, &mqttv3.ConnackError{ReturnCode: 5}), fault.ConnackRefused, "; the key is encoded in base64 twice", "base64 -d /k", ""},
		{"a key that may be the enrollment group's", Circumstances{Doubt: perhaps}, unauthorized, fault.Unauthorized, "; the key has 64 bytes", "If this is the key of the enrollment group, replace it with the device's key: dpsd derive-key </k", "and the gateway's clock."},
		{"an unknown device", Circumstances{Doubt: doubt}, At(fault.StageRegister, reply(t, "$dps/registrations/res/404/?$rid=1", `{"errorCode":404201}`)), fault.EnrollmentNotFound, "", fault.Describe(fault.EnrollmentNotFound).Advice, ""},
		{"a lost connection", Circumstances{Doubt: doubt}, At(fault.StageConnect, io.EOF), fault.ConnectionLost, "EOF", fault.Describe(fault.ConnectionLost).Advice, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := tt.circumstances.Classify(tt.err)
			if f.Code != tt.code || !strings.HasSuffix(f.Err.Error(), tt.cause) || !strings.HasPrefix(f.Advice(), tt.advice) || !strings.HasSuffix(f.Advice(), tt.then) {
				t.Errorf("got %v; %s", f, f.Advice())
			}
		})
	}
}

func TestACauseRepeatsNoTokenThatAPeerHasSentBack(t *testing.T) {
	const token = "SharedAccessSignature sr=0ne00000000%2Fregistrations%2Fgw-1&sig=c2VjcmV0&se=1&skn=registration"
	for name, err := range map[string]error{
		"as its message": reply(t, "$dps/registrations/res/401/?$rid=1", `{"errorCode":401002,"trackingId":"`+token+`","message":"not `+token+`"}`),
		"as the reason of a proxy": transport.Errors{{Protocol: transport.MQTT, Stage: transport.StageProxy, Address: "h:8883", Err: &transport.ProxyError{
			Status: 407, Reason: "not Basic Z2F0ZXdheTpjMlZqY21WMA==", Location: "http://gateway:c2VjcmV0@proxy/"}}},
	} {
		f := Classify(At(fault.StageRegister, err))
		for _, text := range []string{f.Error(), f.TrackingID} {
			if strings.Contains(text, "c2VjcmV0") || strings.Contains(text, "Z2F0ZXdheTpj") {
				t.Errorf("%s: it says %s", name, text)
			}
		}
		var service *dps.ServiceError
		var proxy *transport.ProxyError
		if !errors.As(f.Err, &service) && !errors.As(f.Err, &proxy) {
			t.Errorf("%s: the fault %s hides its cause", name, f.Code)
		}
	}
}

// dpsd check tries the protocols one by one and knows the configuration.
func TestTheFailureOfOneProtocolHasNoCircumstanceFromTheConfiguration(t *testing.T) {
	one := &transport.Error{Protocol: transport.MQTT, Stage: transport.StageTCP, Address: "h:8883", Err: syscall.ECONNREFUSED}
	if f := Classify(one); f.Code != fault.TCPRefused || f.Stage != fault.StageTCP || f.Circumstance != "" {
		t.Errorf("got %v in stage %s, circumstance %q", f, f.Stage, f.Circumstance)
	}
}
