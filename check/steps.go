package check

import "slices"

// Names of the steps, in the order of an attempt. They do not change, because people use them
// on command lines and programs read them.
const (
	Configuration    = "configuration"
	Identity         = "identity"
	TPM              = "tpm"
	Credential       = "credential"
	Clock            = "clock"
	Roots            = "roots"
	State            = "state"
	Record           = "record"
	Certificate      = "certificate"
	CertificateDates = "certificate-dates"
	CertificateFiles = "certificate-files"
	Unit             = "unit"
	Manager          = "service-manager"
	Service          = "service"
	Consumers        = "consumers"
	Name             = "name"
	TCP              = "tcp"
	Proxy            = "proxy"
	TLS              = "tls"
	WebSocket        = "websocket"
	Connect          = "connect"
	HubName          = "hub-name"
	HubTCP           = "hub-tcp"
	HubTLS           = "hub-tls"
	HubDevice        = "hub-device"
)

// Step is a step of a check.
type Step struct {
	Name        string `json:"name"`
	Description string `json:"description"` // one line of text for people
}

// Steps returns all steps in order.
func Steps() []Step {
	return []Step{
		{Configuration, "dpsd.toml is valid, and the service can read it"},
		{Identity, "the registration ID and the payload are known"},
		{TPM, "if a TPM key is configured, there is a TPM, and the service can use it"},
		{Credential, "the service can use each key, certificate and password"},
		{Clock, "this gateway's clock is plausible and agrees with the clocks of the servers"},
		{Roots, "this gateway trusts the certificate authorities of the cloud"},
		{State, "the state and runtime directories are writable, and there is free space"},
		{Record, "the published record is intact and belongs to this configuration"},
		{Certificate, "the issued certificate belongs to its key and to this gateway, and each certificate is signed by the next"},
		{CertificateDates, "every certificate in the chain of the issued certificate is valid, and the renewal is not overdue"},
		{CertificateFiles, "only dpsd, root and the members of the group can read the key of the issued certificate"},
		{Unit, "dpsd.service is installed, enabled and started"},
		{Manager, "the features of the service manager that dpsd uses: notification, watchdog, credentials and log; all are optional"},
		{Service, "the running dpsd has no unresolved fault and uses the current dpsd.toml"},
		{Consumers, "systemd has opened the socket of each [[consumer]] and passed it to dpsd, and not every user can connect to it"},
		{Name, "the name of the endpoint, or of the proxy, can be resolved"},
		{TCP, "each of its addresses accepts a connection"},
		{Proxy, "the proxy connects to the endpoint"},
		{TLS, "the TLS handshake succeeds, and the certificate of the endpoint is trusted"},
		{WebSocket, "the endpoint switches to WebSocket"},
		{Connect, "the endpoint accepts each credential (CONNECT and CONNACK)"},
		{HubName, "the name of the assigned hub can be resolved"},
		{HubTCP, "the hub accepts connections on ports 8883 and 443"},
		{HubTLS, "the TLS handshake with the hub succeeds; the check does not sign in"},
		{HubDevice, "with hub_check = \"https\", the hub accepts the device: dpsd check requests the modules of the device over HTTPS, which does not end any connection"},
	}
}

// leavesOut reports whether all of the steps are to be skipped.
func (g *Gateway) leavesOut(names ...string) bool {
	return !slices.ContainsFunc(names, func(name string) bool { return !g.Skip[name] })
}

// wanted returns a function that passes the results of requested steps to report. For any
// other step, it reports once, or once for each protocol, that the step was skipped.
func (g *Gateway) wanted(report func(Result)) func(Result) {
	reported := map[string]bool{}
	return func(r Result) {
		if !g.Skip[r.Name] {
			report(r)
			return
		}
		if !reported[r.Name+" "+r.Protocol] {
			reported[r.Name+" "+r.Protocol] = true
			report(Result{Name: r.Name, Protocol: r.Protocol, Status: Skipped, Detail: "not checked: excluded with --skip"})
		}
	}
}
