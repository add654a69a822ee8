package daemon

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
	case errors.As(cause, &answer) && (answer.Status == http.StatusProxyAuthRequired || answer.Status == http.StatusUnauthorized):
		// 401 is tinyproxy's word for a wrong password.
		return fault.ProxyAuth
	case errors.As(cause, &answer) && portal(answer.Status):
		return fault.CaptivePortal
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

// Azure knows the domains of DPS in Azure's clouds: global, China, US government.
func Azure(host string) bool {
	host = strings.ToLower(host)
	for _, domain := range []string{"net", "cn", "us"} {
		if strings.HasSuffix(host, ".azure-devices-provisioning."+domain) {
			return true
		}
	}
	return false
}
