package simulator

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dpsd-project/dpsd/simulator/enroll"
	"github.com/dpsd-project/dpsd/simulator/hub"
	"github.com/dpsd-project/dpsd/simulator/scenario"
)

// The limits of HTTPS.
const (
	idleTimeout = 4 * time.Minute // between two requests of a connection
	maxBody     = 96 << 10        // DPS page "Azure IoT Hub Device Provisioning Service limits": the size of a message
)

// serveHTTPS serves HTTP/1.1 on a connection whose first request does not start a WebSocket,
// until the connection ends. read is what was read from the connection before.
func (c *connection) serveHTTPS(read []byte) {
	c.protocol = "https"
	c.reason = "the client closed the connection"
	conn := &httpConn{Conn: c.tls, raw: c.raw, read: read, ended: make(chan struct{}), observed: c.server.log.observe != nil}
	server := &http.Server{
		Handler:           &deviceAPI{c: c, conn: conn},
		ReadHeaderTimeout: connectTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxRequest,
		ErrorLog:          log.New(io.Discard, "", 0),
	}
	_ = server.Serve(&singleListener{conn: conn}) // until the connection ends
}

// httpConn is the connection that net/http serves. It begins with bytes that were already
// read.
type httpConn struct {
	net.Conn
	raw   *rawConn
	read  []byte
	rule  atomic.Pointer[Rule] // of the answer that is being written; nil for none
	close sync.Once
	ended chan struct{} // closed by Close

	observed bool // the bytes of the requests are recorded
	mu       sync.Mutex
	recorded []byte // since the last call of take
}

func (h *httpConn) Read(p []byte) (n int, err error) {
	if len(h.read) > 0 {
		n = copy(p, h.read)
		h.read = h.read[n:]
	} else {
		n, err = h.Conn.Read(p)
	}
	if h.observed {
		h.mu.Lock()
		h.recorded = append(h.recorded, p[:n]...)
		h.mu.Unlock()
	}
	return n, err
}

// take returns the bytes of the current request. They include the beginning of the next
// request if the client did not wait.
func (h *httpConn) take() []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	raw := h.recorded
	h.recorded = nil
	return raw
}

func (h *httpConn) Write(p []byte) (int, error) {
	if rule := h.rule.Load(); rule != nil {
		return h.raw.trickle(rule, p, h.Conn.Write)
	}
	return h.Conn.Write(p)
}

func (h *httpConn) Close() error {
	err := h.Conn.Close()
	h.close.Do(func() { close(h.ended) })
	return err
}

// singleListener accepts one connection, and ends when that connection has ended.
type singleListener struct {
	conn     *httpConn
	accepted bool
}

// Accept returns the connection when it is called for the first time.
func (l *singleListener) Accept() (net.Conn, error) {
	if !l.accepted {
		l.accepted = true
		return l.conn, nil
	}
	<-l.conn.ended
	return nil, net.ErrClosed
}

// Close does nothing, because the connection has another owner.
func (l *singleListener) Close() error { return nil }

// Addr returns the address of the server.
func (l *singleListener) Addr() net.Addr { return l.conn.LocalAddr() }

// The operations of the device API.
const (
	operationRegister = "register"
	operationPoll     = "poll"
	operationLookup   = "lookup"
)

// apiRequest is a parsed request of the device API.
type apiRequest struct {
	operation      string
	scope          string
	registrationID string
	operationID    string // of a poll
	apiVersion     string
}

// errNoMethod is the error of a path that does not have the method.
var errNoMethod = errors.New("the path does not support this method")

// parseAPIRequest parses
//
//	PUT  /{idScope}/registrations/{registrationId}/register
//	GET  /{idScope}/registrations/{registrationId}/operations/{operationId}
//	POST /{idScope}/registrations/{registrationId}
func parseAPIRequest(method string, target *url.URL) (apiRequest, error) {
	parts := strings.Split(strings.TrimPrefix(target.EscapedPath(), "/"), "/")
	for i := range parts {
		var err error
		if parts[i], err = url.PathUnescape(parts[i]); err != nil {
			return apiRequest{}, errors.New("the path is not percent-encoded")
		}
	}
	if len(parts) < 3 || parts[1] != "registrations" {
		return apiRequest{}, errors.New("the service does not have this path")
	}
	r := apiRequest{scope: parts[0], registrationID: parts[2], apiVersion: target.Query().Get("api-version")}
	var want string
	switch {
	case len(parts) == 3:
		r.operation, want = operationLookup, http.MethodPost
	case len(parts) == 4 && parts[3] == "register":
		r.operation, want = operationRegister, http.MethodPut
	case len(parts) == 5 && parts[3] == "operations":
		r.operation, want, r.operationID = operationPoll, http.MethodGet, parts[4]
	default:
		return apiRequest{}, errors.New("the service does not have this path")
	}
	if method != want {
		return r, errNoMethod
	}
	return r, nil
}

// deviceAPI is the device API of the service over HTTPS. It answers like the MQTT part, from
// the same state. The zero value is not useful.
type deviceAPI struct {
	c        *connection
	conn     *httpConn
	requests int
	service  string // of the current request, for the log
}

// explainPath explains a path or a method that the device API does not have.
func explainPath(err error) enroll.Explanation {
	return enroll.Explanation{
		Reason:   err.Error(),
		Expected: "PUT /{idScope}/registrations/{id}/register, GET /{idScope}/registrations/{id}/operations/{operationId} or POST /{idScope}/registrations/{id}",
	}
}

// ServeHTTP answers one request of the connection.
func (d *deviceAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	server := d.c.server
	d.requests++
	d.conn.rule.Store(nil)
	if hub.Owns(r) {
		d.service = "hub"
		d.serveHub(w, r)
		return
	}
	d.service = "dps"
	req, err := parseAPIRequest(r.Method, r.URL)
	id := req.registrationID
	body, readErr := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	d.note(Entry{Packet: "REQUEST", Direction: "up", RegistrationID: id, Topic: r.Method + " " + target(r.URL), Size: len(body), Raw: d.conn.take()})
	x := exchange{deviceAPI: d, w: w, r: r, req: req, rule: &Rule{}}
	switch {
	case errors.Is(err, errNoMethod):
		x.refuse(&enroll.Refusal{Code: 405000, Message: "Method not allowed.", Explanation: explainPath(err)})
		return
	case err != nil:
		x.refuse(&enroll.Refusal{Code: 404000, Message: "Not found.", Explanation: explainPath(err)})
		return
	case errors.As(readErr, new(*http.MaxBytesError)):
		x.refuse(&enroll.Refusal{Code: 413000, Message: "The body is too large.", Explanation: enroll.Explanation{Reason: fmt.Sprintf("the body is larger than %d bytes", maxBody)}})
		return
	case readErr != nil:
		d.abort(readErr.Error())
	}

	script := server.script.Load()
	if stage, scripted := map[string]Stage{operationRegister: OnRegister, operationPoll: OnPoll}[req.operation]; scripted {
		x.rule = script.Match(scenario.Event{
			On: stage, Protocol: d.c.protocol, RegistrationID: id, Resumed: d.c.tls.ConnectionState().DidResume,
			CSR: func() bool { return server.service.concernsCSR(id, request{poll: stage == OnPoll}, body) },
		})
	}
	if !pause(x.rule.Delay, server.done) {
		d.abort("the server has shut down")
	}
	x.instead()

	who, refused := d.authenticate(req, r.Header.Get("Authorization"), script.Settings)
	if refused != nil {
		x.refuse(refused)
		return
	}
	if !pause(script.Settings.ReplyDelay, server.done) {
		d.abort("the server has shut down")
	}
	detail := ""
	if who.refused != nil {
		detail = who.refused.Reason
	}
	if req.operation == operationLookup {
		x.respond(server.service.lookup(who, server.now()), detail)
		return
	}
	x.respond(server.service.answer(request{poll: req.operation == operationPoll, operationID: req.operationID}, body, who, x.rule, server.now()), detail)
}

// authenticate checks who sends a request. A refusal that it returns is one before the
// operation, like a refused CONNECT.
func (d *deviceAPI) authenticate(req apiRequest, token string, set Settings) (*principal, *enroll.Refusal) {
	server := d.c.server
	who := &principal{registrationID: req.registrationID, apiVersion: req.apiVersion, enrollment: &enroll.Entry{}, features: set.Features[req.apiVersion]}
	refuse := func(code int, message string, why enroll.Explanation) (*principal, *enroll.Refusal) {
		return nil, &enroll.Refusal{Code: code, Message: message, Explanation: why}
	}
	switch {
	case !enroll.IsRegistrationID(req.registrationID):
		return refuse(400004, "Invalid registration ID.", enroll.Explanation{Reason: enroll.Quote(req.registrationID) + " is not a registration ID"})
	case req.apiVersion == "":
		return refuse(400000, "The query parameter api-version is missing.", enroll.Explanation{Reason: "the request has no api-version", Expected: "?api-version=2019-03-31 or later"})
	case !scenario.IsAPIVersion(req.apiVersion) || !set.Serves(req.apiVersion):
		return refuse(400000, "Unknown api version.", explainVersion(set, req.apiVersion))
	case req.scope != server.material.scope:
		return refuse(404000, "Device Provisioning Service not found.", server.explainScope(req.scope))
	}
	if why := server.verify(who, req.scope, token, d.c.tls.ConnectionState()); why.Reason != "" {
		code, message := 401000, "Unauthorized"
		if who.certificate {
			code, message = 401002, "Invalid certificate."
		}
		return refuse(code, message, why)
	}
	return who, nil
}

func (d *deviceAPI) note(e Entry) {
	e.Service = d.service
	d.c.note(e)
}

// serveHub answers a request for a hub.
func (d *deviceAPI) serveHub(w http.ResponseWriter, r *http.Request) {
	server := d.c.server
	u, _ := hub.RequestUser(r)
	known, _ := server.hub.Find(u.Hub, u.Device)
	entry := Entry{Service: "hub", Hub: u.Hub, DeviceID: u.Device, ModuleID: u.Module, RegistrationID: known.RegistrationID}
	body, readErr := io.ReadAll(http.MaxBytesReader(w, r.Body, hub.MaxMessage))
	up := entry
	up.Packet, up.Direction, up.Topic, up.Size = "REQUEST", "up", r.Method+" "+target(r.URL), len(body)
	up.Raw = d.conn.take()
	d.note(up)

	state := d.c.tls.ConnectionState()
	rule := server.script.Load().MatchHub(OnHubRequest, d.c.protocol, hub.Names(u.Hub), u.Device, "", state.DidResume)
	x := exchange{deviceAPI: d, w: w, r: r, req: apiRequest{registrationID: known.RegistrationID}, rule: rule}
	if !pause(rule.Delay, server.done) {
		d.abort("the server has shut down")
	}
	x.instead()

	var answer hub.Response
	switch {
	case errors.As(readErr, new(*http.MaxBytesError)):
		answer = hub.Failure(http.StatusRequestEntityTooLarge, &enroll.Refusal{
			Code: 413001, Message: "MessageTooLarge", Explanation: enroll.Explanation{Reason: fmt.Sprintf("the body is larger than %d bytes", hub.MaxMessage)},
		})
	case readErr != nil:
		d.abort(readErr.Error())
	case rule.ErrorCode != 0 || rule.Status >= 400 && rule.Body == nil:
		status := cmp.Or(rule.Status, rule.ErrorCode/1000)
		answer = hub.Failure(status, &enroll.Refusal{
			Code: cmp.Or(rule.ErrorCode, status*1000), Message: cmp.Or(rule.ErrorMessage, http.StatusText(status)), Explanation: scripted,
		})
	case rule.Status != 0 || rule.Body != nil:
		answer = hub.Response{Status: cmp.Or(rule.Status, http.StatusOK)}
	default:
		answer = server.hub.Answer(r, body, state)
	}
	if rule.Body != nil {
		answer.Body = []byte(*rule.Body)
	}
	if answer.Status < 200 || answer.Status > 999 { // HTTP does not have such a final status
		answer.Status = http.StatusInternalServerError
	}
	header := w.Header()
	if len(answer.Body) > 0 {
		header.Set("Content-Type", "application/json; charset=utf-8")
	}
	maps.Copy(header, answer.Header)
	down := entry
	down.Packet, down.Direction, down.ReturnCode, down.Size = "RESPONSE", "down", &answer.Status, len(answer.Body)
	if refused := answer.Refused; refused != nil {
		header.Set("Iothub-Errorcode", refused.Message)
		down.Detail = fmt.Sprintf("%d %s: %s", refused.Code, refused.Message, refused.Reason)
		d.c.refuse(entry, fmt.Sprintf("%d, error code %d", answer.Status, refused.Code), refused.Explanation)
	}
	if rule.RetryAfter != "" && rule.RetryAfter != "none" {
		header.Set("Retry-After", rule.RetryAfter)
	}
	if answer.ETag != "" {
		header.Set("ETag", `"`+answer.ETag+`"`)
	}
	d.note(down)
	w.WriteHeader(answer.Status)
	_, _ = w.Write(answer.Body)
	_ = http.NewResponseController(w).Flush()
	x.then(rule.Then)
}

// abort ends the connection without an answer.
func (d *deviceAPI) abort(reason string) {
	d.c.reason = reason
	panic(http.ErrAbortHandler) // net/http closes the connection
}

// exchange is one request and its answer.
type exchange struct {
	*deviceAPI
	w    http.ResponseWriter
	r    *http.Request
	req  apiRequest
	rule *Rule
}

// instead does what the rule specifies in place of an answer. It returns if there is to be an
// answer.
func (x *exchange) instead() {
	switch garbage := x.rule.GarbageBytes(); {
	case len(garbage) > 0:
		x.note(Entry{Packet: "GARBAGE", Size: len(garbage), RegistrationID: x.req.registrationID, Raw: garbage})
		_, _ = x.conn.Write(garbage)
		if x.rule.Silent {
			x.wait()
		}
		x.abort("scenario: garbage")
	case x.rule.Reset:
		x.then("reset")
	case x.rule.Close:
		x.then("close")
	case x.rule.Silent:
		x.then("silent")
	}
}

// then does what follows an answer or replaces it.
func (x *exchange) then(what string) {
	switch what {
	case "reset":
		x.c.raw.reset()
	case "silent":
		x.wait()
	case "close":
	default:
		return
	}
	x.abort("scenario: " + what)
}

// wait waits until the client closes the connection or the server ends.
func (x *exchange) wait() {
	select {
	case <-x.r.Context().Done():
	case <-x.c.server.done:
	}
}

// refuse answers a request that is not for an operation, or whose sender is unknown.
func (x *exchange) refuse(why *enroll.Refusal) {
	x.respond(reply{status: why.Code / 1000, retryAfter: "none", refusal: why, body: errorDetails{
		ErrorCode:  why.Code,
		TrackingID: x.c.server.seed.guid(fmt.Sprintf("tracking https %d %d", x.c.number, x.requests)),
		Message:    why.Message,
		Timestamp:  timestamp(x.c.server.now()),
	}}, why.Reason)
}

// respond sends a reply. The detail is for the log.
func (x *exchange) respond(r reply, detail string) {
	body, err := r.encode(x.rule)
	if err != nil { // every value here came from JSON
		x.abort(err.Error())
	}
	status := r.status
	if status < 200 || status > 999 { // HTTP does not have such a final status; a topic has
		status = http.StatusInternalServerError
	}
	header := x.w.Header()
	header.Set("Content-Type", "application/json; charset=utf-8")
	header.Set("Content-Length", fmt.Sprint(len(body)))
	header.Set("x-ms-request-id", x.c.server.seed.guid(fmt.Sprintf("request %d %d", x.c.number, x.requests)))
	if after := cmp.Or(x.rule.RetryAfter, r.retryAfter); after != "none" {
		header.Set("Retry-After", after)
	}
	switch b := r.body.(type) {
	case errorDetails:
		header.Set("x-ms-error-code", fmt.Sprint(b.ErrorCode))
	case operationStatus:
		if status == http.StatusAccepted {
			where := url.URL{
				Scheme: "https", Host: x.r.Host,
				Path:     "/" + x.req.scope + "/registrations/" + x.req.registrationID + "/operations/" + b.OperationID,
				RawQuery: "api-version=" + url.QueryEscape(x.req.apiVersion),
			}
			header.Set("Location", where.String())
		}
	}
	if x.rule.ByteByByte {
		x.conn.rule.Store(x.rule)
	}
	var raw []byte
	if x.conn.observed {
		header.Set("Date", x.c.server.now().UTC().Format(http.TimeFormat))
		raw = head(status, header)
		raw = append(raw, body...)
	}
	if r.refusal != nil {
		x.c.refuse(Entry{RegistrationID: x.req.registrationID}, r.answer(), r.refusal.Explanation)
	}
	x.note(Entry{Packet: "RESPONSE", Direction: "down", RegistrationID: x.req.registrationID, ReturnCode: &status, Size: len(body), Detail: detail, Raw: raw})
	x.w.WriteHeader(status)
	_, _ = x.w.Write(body) //nolint:gosec // JSON, and not for a browser
	_ = http.NewResponseController(x.w).Flush()
	x.then(x.rule.Then)
}

// head returns the head of a response as net/http writes it.
func head(status int, header http.Header) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 %03d %s\r\n", status, cmp.Or(http.StatusText(status), fmt.Sprintf("status code %d", status)))
	_ = header.Write(&b) // a buffer accepts everything
	b.WriteString("\r\n")
	return b.Bytes()
}

// target returns the path and the query of a request for the packet log, without the values of
// parameters that the service does not have: a mistaken client sends its token in one.
func target(u *url.URL) string {
	if u.RawQuery == "" {
		return u.EscapedPath()
	}
	parameters := strings.Split(u.RawQuery, "&")
	for i, p := range parameters {
		if name, _, given := strings.Cut(p, "="); given && name != "api-version" {
			parameters[i] = name + "=…"
		}
	}
	return u.EscapedPath() + "?" + strings.Join(parameters, "&")
}
