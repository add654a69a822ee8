package classify

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/foreign"
	"github.com/dpsd-project/dpsd/transport"
)

// This file knows who may stand between a gateway and the service.

// ofProxy knows why the proxy was not passed.
func ofProxy(cause error) fault.Code {
	var (
		answer  *transport.ProxyError
		plain   *transport.NotTLSError
		file    *fs.PathError
		invalid x509.CertificateInvalidError
		verify  *tls.CertificateVerificationError
		op      *net.OpError
	)
	switch {
	case errors.Is(cause, transport.ErrProxyAddress):
		return fault.ProxyAddress
	case errors.As(cause, &file):
		return fault.CAUnreadable
	case errors.Is(cause, transport.ErrProxyWantsTLS), errors.As(cause, &plain):
		return fault.ProxyScheme
	case errors.As(cause, &answer) && (answer.Status == http.StatusProxyAuthRequired || answer.Status == http.StatusUnauthorized):
		// tinyproxy answers 401 to a wrong password.
		if !offersBasic(answer.Schemes) {
			return fault.ProxyAuthUnsupported
		}
		return fault.ProxyAuth
	case errors.As(cause, &answer) && portal(answer.Status):
		return fault.CaptivePortal
	case errors.As(cause, &answer) && answer.Status >= http.StatusBadGateway && answer.Status <= http.StatusGatewayTimeout:
		return fault.ProxyUpstream
	case errors.As(cause, &answer):
		return fault.ProxyRefused
	case errors.As(cause, &invalid) && invalid.Reason == x509.Expired && notYet(invalid):
		return fault.ClockImplausible
	case errors.As(cause, &verify):
		return fault.ProxyUntrusted
	case errors.As(cause, &op) && op.Op == "dial":
		return fault.ProxyUnreachable
	case errors.Is(cause, context.DeadlineExceeded) || isTimeout(cause):
		return fault.ConnectTimeout
	}
	return fault.ProxyRefused
}

// offersBasic reports whether basic authentication may be accepted. A proxy that names no
// scheme does not say.
func offersBasic(schemes []string) bool {
	return len(schemes) == 0 || slices.ContainsFunc(schemes, func(s string) bool { return strings.EqualFold(s, "Basic") })
}

// blocked reports whether the name server has sent the gateway to itself in place of
// Azure, as blocklists do with names that they do not like: nobody listens there, or
// somebody with a certificate for another name.
func blocked(e *transport.Error) bool {
	host, _, err := net.SplitHostPort(e.Address)
	if err != nil || e.Proxy != "" || e.Remote == nil {
		return false
	}
	var other *transport.CertificateError
	if e.Stage != transport.StageTCP && (!errors.As(e.Err, &other) || other.Named()) {
		return false
	}
	_, azure := CloudOf(host)
	reached, err := netip.ParseAddrPort(e.Remote.String())
	return azure && err == nil && Blocked(reached.Addr())
}

// Blocked reports whether an address is one that a blocklist gives for a name.
func Blocked(address netip.Addr) bool {
	address = address.Unmap()
	return address.IsLoopback() || address.IsUnspecified()
}

// blockedError says where the name has led.
type blockedError struct {
	address string
	err     error
}

func (e *blockedError) Error() string {
	return fmt.Sprintf("the name resolves to this gateway itself (%s): %v", e.address, e.err)
}
func (e *blockedError) Unwrap() error { return e.err }

// portal reports whether an HTTP status is a captive portal's: it redirects to a page,
// or says what it is (RFC 6585 §6).
func portal(status int) bool {
	return status/100 == 3 || status == http.StatusNetworkAuthenticationRequired
}

// intercepted tells somebody who inspects TLS from a gateway whose roots are old: the
// certificate is for a name of Azure's, but its issuer, whom nobody vouches for, is
// neither of the two that issue for Azure. Of another endpoint, such as a simulator,
// nobody can say who should have issued for it.
func intercepted(e *transport.CertificateError) bool {
	return e.Named() && stranger(e.Host, e.Certificate.Issuer)
}

// stranger reports whether the certificate of a name of Azure's was issued by
// somebody else than the two that issue for Azure.
func stranger(host string, issuer pkix.Name) bool {
	names := append([]string{issuer.CommonName}, issuer.Organization...)
	for _, name := range names {
		name = strings.ToLower(name)
		if strings.Contains(name, "microsoft") || strings.Contains(name, "digicert") {
			return false
		}
	}
	return Azure(host) && strings.Join(names, "") != ""
}

// inspectedError is a refusal on a connection that somebody inspects whose roots
// this gateway trusts. Who refused cannot be told, so it says nothing about the
// credential.
type inspectedError struct {
	issuer string
	err    error
}

func (e *inspectedError) Error() string {
	return fmt.Sprintf("%v; it came through %q, who inspects this connection", e.err, e.issuer)
}
func (e *inspectedError) Unwrap() error { return e.err }

// Inspector is who stands between this gateway and a name of Azure's, "" for
// nobody: the issuer of the certificate that was verified.
func Inspector(host string, issuer pkix.Name) string {
	if stranger(host, issuer) {
		return foreign.Line(issuer.String(), foreign.MaxText/2)
	}
	return ""
}
