package consumer

import (
	"cmp"
	"context"
	"net/http"
	"time"

	"github.com/dpsd-project/dpsd/hub"
	"github.com/dpsd-project/dpsd/sas"
)

// Hub is the answer of GET /v1/hub.
type Hub struct {
	Host       string      `json:"host"`
	DeviceID   string      `json:"deviceId"`
	ModuleID   string      `json:"moduleId,omitempty"`
	Generation uint64      `json:"generation"`
	Profile    hub.Profile `json:"connectionProfile"`
	Ports      hub.Ports   `json:"ports"`
	// WebSocketPath, ClientID, UserName and APIVersion are empty if the profile defines none.
	WebSocketPath string `json:"webSocketPath,omitempty"`
	ClientID      string `json:"clientId,omitempty"`
	UserName      string `json:"userName,omitempty"`
	APIVersion    string `json:"apiVersion,omitempty"`
	RootsFile     string `json:"rootsFile,omitempty"`
	Scope         string `json:"scope"`
	// Tokens and Certificate report what the consumer can get. Withheld is the code of the
	// reason why it must wait.
	Tokens      bool `json:"tokens"`
	Certificate bool `json:"certificate"`
	Withheld    Code `json:"withheld,omitempty"`
}

// Token is the answer of POST /v1/token.
type Token struct {
	Token      string    `json:"token"`
	Expiry     time.Time `json:"expiry"`
	ExpiresIn  int       `json:"expiresIn"` // seconds from the answer to Expiry
	Generation uint64    `json:"generation"`
}

// Certificate is the answer of GET /v1/certificate.
type Certificate struct {
	Certificate string    `json:"certificate"`
	PrivateKey  string    `json:"privateKey"`
	NotAfter    time.Time `json:"notAfter,omitzero"` // omitted until dpsd has read the certificate
	Generation  uint64    `json:"generation"`
}

// unknown returns the problem that prevents dpsd from describing the hub, or nil. An implausible
// clock does not prevent it.
func unknown(state *State) *problem {
	switch {
	case state.Withheld == NotAssigned || state.Withheld == OtherConfiguration:
		return withheld(state.Withheld)
	case state.Hub == hub.Identity{}:
		return withheld(NotAssigned)
	}
	return nil
}

// unavailable returns the temporary problem that prevents dpsd from issuing any credential, or nil.
func (s *Server) unavailable(state *State) *problem {
	if wrong := unknown(state); wrong != nil {
		return wrong
	}
	if wrong := withheld(state.Withheld); wrong != nil {
		return wrong
	}
	module := s.Consumer.Scope.Module
	if module == "" || state.Modules[module].Ready {
		return nil
	}
	advice := "wait until GET /v1/events sends the event available; for the cause, run: dpsd status"
	if fault := state.Modules[module].Fault; fault != "" {
		advice = "for the cause, " + fault + ", and what to do, run: dpsd status"
	}
	return notYet(ModuleNotReady, "dpsd has not created the module at the hub yet", advice)
}

// withoutTokens returns the problem that prevents tokens for the consumer as long as the assignment
// does not change, or nil.
func (s *Server) withoutTokens(state *State) *problem {
	refuse := func(code Code, text string) *problem {
		return &problem{Problem: Problem{Code: code, Error: text, Advice: s.insteadOfTokens()}, status: http.StatusConflict}
	}
	switch {
	case hub.Named(state.Profile) != hub.Classic:
		return refuse(ProfileWithoutTokens, "the hub has a connection profile that does not accept tokens")
	case !state.Tokens && s.Consumer.Scope.Module == "":
		return refuse(NoSymmetricKey, "the device has no symmetric key, so dpsd cannot issue tokens for it")
	}
	return nil
}

// insteadOfTokens returns how the consumer can connect without a token. Only one with the scope
// "device" can use the certificate.
func (s *Server) insteadOfTokens() string {
	const connect = "connect with the certificate: GET /v1/certificate"
	switch {
	case s.Consumer.Certificate:
		return connect
	case s.Consumer.Scope == Scope{}:
		return "set certificate = true in its [[consumer]] in dpsd.toml, and " + connect
	}
	return `set scope = "device" and certificate = true in its [[consumer]] in dpsd.toml, and ` + connect
}

func (s *Server) hub(context.Context, []byte) (any, *problem) {
	state := s.Board.State()
	if wrong := unknown(&state); wrong != nil {
		return nil, wrong
	}
	identity, profile := s.Consumer.Scope.identity(state.Hub), hub.Named(state.Profile)
	answer := Hub{
		Host: identity.Host, DeviceID: identity.DeviceID, ModuleID: identity.ModuleID, Generation: state.Generation,
		Profile: profile, Ports: profile.Ports(), RootsFile: state.RootsFile, Scope: s.Consumer.Scope.String(),
		Tokens: s.withoutTokens(&state) == nil, Certificate: s.Consumer.Certificate && state.Certificate != nil,
	}
	if answer.Ports.WebSocket != 0 {
		answer.ClientID, answer.WebSocketPath = identity.ClientID(), hub.WebSocketPath
	}
	if profile == hub.Classic {
		answer.UserName, answer.APIVersion = identity.UserName(), hub.APIVersion
	}
	if wrong := s.unavailable(&state); wrong != nil {
		answer.Withheld = wrong.Code
	}
	return answer, nil
}

func (s *Server) token(ctx context.Context, body []byte) (any, *problem) {
	life, wrong := lifetime(body, cmp.Or(s.Consumer.Lifetime, DefaultLifetime))
	if wrong != nil {
		return nil, wrong
	}
	state := s.Board.State()
	if wrong := s.noToken(&state); wrong != nil {
		return nil, wrong
	}
	expiry := s.now().Truncate(time.Second).Add(life)
	identity := s.Consumer.Scope.identity(state.Hub)
	resource := identity.Resource(s.Consumer.Scope.Events)
	mac, err := s.MAC(ctx, identity, sas.Statement(resource, expiry))
	// The key may have taken a minute. Meanwhile, everything can have changed.
	state = s.Board.State()
	if wrong := s.noToken(&state); wrong != nil {
		return nil, wrong
	}
	if err != nil || mac == nil || identity != s.Consumer.Scope.identity(state.Hub) {
		return nil, notYet(KeyUnavailable, "dpsd temporarily cannot use the key", "run: dpsd status")
	}
	now := s.now()
	left := time.Duration(expiry.Unix()-now.Unix()) * time.Second
	if left <= 0 || left > life {
		return nil, notYet(KeyUnavailable, "the key was too slow for this lifetime, or the clock was set", "repeat the request; if the key is always slow, with a longer lifetime")
	}
	s.Usage.token(now, expiry)
	return Token{
		Token: sas.Token(resource, mac, expiry, ""), Expiry: expiry.UTC(), ExpiresIn: int(left.Seconds()), Generation: state.Generation,
	}, nil
}

// noToken returns the reason why the consumer gets no token, or nil.
func (s *Server) noToken(state *State) *problem {
	return cmp.Or(s.unavailable(state), s.withoutTokens(state))
}

func (s *Server) certificate(context.Context, []byte) (any, *problem) {
	if !s.Consumer.Certificate {
		return nil, &problem{Problem: Problem{
			Code: CertificateNotAllowed, Error: "dpsd.toml does not allow this service to use the certificate",
			Advice: "set certificate = true in its [[consumer]] in dpsd.toml",
		}, status: http.StatusForbidden}
	}
	state := s.Board.State()
	if wrong := s.unavailable(&state); wrong != nil {
		return nil, wrong
	}
	files := state.Certificate
	if files == nil {
		return nil, &problem{Problem: Problem{
			Code: NoCertificate, Error: "the device has no certificate", Advice: "get a token: POST /v1/token",
		}, status: http.StatusConflict}
	}
	return Certificate{Certificate: files.Certificate, PrivateKey: files.PrivateKey, NotAfter: files.NotAfter.UTC(), Generation: state.Generation}, nil
}

func (s *Server) refused(ctx context.Context, body []byte) (any, *problem) {
	code, wrong := report(body)
	if wrong != nil {
		return nil, wrong
	}
	state := s.Board.State()
	if wrong := unknown(&state); wrong != nil {
		return nil, wrong
	}
	unavailable := notYet(ReportsUnavailable, "dpsd temporarily cannot accept the report", "send the report again later")
	if s.Refused == nil {
		return nil, unavailable
	}
	// A daemon that is stopping may accept no more reports.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.stopping, cancel)()
	answer, err := s.Refused(ctx, s.Consumer.Name, code)
	if err != nil {
		return nil, unavailable
	}
	s.Usage.count(refused)
	return answer, nil
}
