package check

// The names of the steps, in the order of an attempt. They never change: people name them
// on command lines and programs look for them.
const (
	Configuration = "configuration"
	Identity      = "identity"
	Credential    = "credential"
	Clock         = "clock"
	Roots         = "roots"
	State         = "state"
	Record        = "record"
	Unit          = "unit"
	Service       = "service"
	Name          = "name"
	TCP           = "tcp"
	Proxy         = "proxy"
	TLS           = "tls"
	WebSocket     = "websocket"
	Connect       = "connect"
	HubName       = "hub-name"
	HubTCP        = "hub-tcp"
	HubTLS        = "hub-tls"
)

// Step is a step that a check can consist of.
type Step struct {
	Name        string
	Description string // one line for people
}

// Steps returns all of them, in order.
func Steps() []Step {
	return []Step{
		{Configuration, "dpsd.toml can be read, by the service too, and is valid"},
		{Identity, "the registration ID and the payload are known"},
		{Credential, "each key, certificate and password can be used by the service"},
		{Clock, "this gateway's clock is plausible, also beside those of the servers"},
		{Roots, "the authorities of the cloud are trusted here"},
		{State, "the state directory can be written and has room"},
		{Record, "the published record is whole and belongs to this configuration"},
		{Unit, "dpsd.service is installed, enabled and started"},
		{Service, "the running dpsd has no unresolved fault and the present configuration"},
		{Name, "the name of the endpoint, or of the proxy, is resolved"},
		{TCP, "each of its addresses accepts a connection"},
		{Proxy, "the proxy leads to the endpoint"},
		{TLS, "TLS is agreed on, and the certificate of the endpoint is verified"},
		{WebSocket, "the endpoint switches to WebSocket"},
		{Connect, "the endpoint accepts each credential (CONNECT and CONNACK)"},
		{HubName, "the name of the assigned hub is resolved"},
		{HubTCP, "the hub accepts connections at ports 8883 and 443"},
		{HubTLS, "TLS with the hub, and its certificate; nobody signs in"},
	}
}

// leavesOut reports whether a step is not wanted.
func (g *Gateway) leavesOut(names ...string) bool {
	for _, name := range names {
		if !g.Skip[name] {
			return false
		}
	}
	return true
}

// wanted hands on the results of the steps that are wanted, and for each of the others
// that it was left out, once.
func (g *Gateway) wanted(report func(Result)) func(Result) {
	told := map[string]bool{}
	return func(r Result) {
		if !g.Skip[r.Name] {
			report(r)
			return
		}
		if !told[r.Name] {
			told[r.Name] = true
			report(Result{Name: r.Name, Status: Skipped, Detail: "not checked: left out, as asked for"})
		}
	}
}
