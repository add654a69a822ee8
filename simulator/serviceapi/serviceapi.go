// Package serviceapi is the service API of a simulated Device Provisioning Service: the REST
// API with which programs create enrollments and read registrations, in the form of
// api-version 2021-10-01, which Microsoft's service SDKs use.
//
// The data are those of a simulator.Server. Changes take effect for subsequent connections of
// devices, and are written to the file of the enrollments.
package serviceapi

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/simulator/enroll"
	"github.com/dpsd-project/dpsd/simulator/scenario"
	"github.com/dpsd-project/dpsd/simulator/tomlfile"
)

// The limits of the service.
const (
	maxBody = 512 << 10 // of a request
	maxBulk = 10        // enrollments in a bulk operation; DPS REST reference "Run Bulk Operation"
	maxPage = 1000      // items in a page of a query
)

// The headers of the service.
const (
	headerContinuation = "x-ms-continuation"
	headerMaxItems     = "x-ms-max-item-count"
	headerItemType     = "x-ms-item-type"
	headerErrorCode    = "x-ms-error-code"
	headerRequestID    = "x-ms-request-id"
)

// Handler serves the service API of a server. Create it with New.
type Handler struct {
	server *simulator.Server
	now    func() time.Time
	key    []byte
	mux    *http.ServeMux

	changing sync.Mutex // held between the check of an etag and the change
}

// New returns the handler for a server. now is the clock for tokens and timestamps.
func New(server *simulator.Server, now func() time.Time) (*Handler, error) {
	key, err := enroll.DecodeKey(server.ServiceKey())
	if err != nil {
		return nil, err
	}
	h := &Handler{server: server, now: now, key: key, mux: http.NewServeMux()}
	for _, k := range []kind{individuals{server}, groups{server}} {
		h.handle("POST "+k.path()+"/query", func(r *http.Request, body []byte) (*response, error) { return h.query(k, r, body) })
		h.handle("POST "+k.path()+"/{$}", func(_ *http.Request, body []byte) (*response, error) { return h.bulk(k, body) })
		h.handle("POST "+k.path()+"/{id}/attestationmechanism", func(r *http.Request, _ []byte) (*response, error) { return h.attestation(k, r) })
		h.handle("GET "+k.path()+"/{id}", func(r *http.Request, _ []byte) (*response, error) { return h.get(k, r) })
		h.handle("PUT "+k.path()+"/{id}", func(r *http.Request, body []byte) (*response, error) { return h.put(k, r, body) })
		h.handle("DELETE "+k.path()+"/{id}", func(r *http.Request, _ []byte) (*response, error) { return h.remove(k, r) })
	}
	h.handle("POST /registrations/{id}/query", h.queryRegistrations)
	h.handle("GET /registrations/{id}", h.registration)
	h.handle("DELETE /registrations/{id}", h.removeRegistration)
	h.handle("POST /registrations/{id}/revoke", h.revokeDevice)
	h.handle("POST /policy/revoke", h.revokePolicy)
	h.handle("POST /registrations/{id}/hub/disable", h.atHub(func(id string) bool { return server.DisableDevice(id, true) }))
	h.handle("POST /registrations/{id}/hub/enable", h.atHub(func(id string) bool { return server.DisableDevice(id, false) }))
	h.handle("DELETE /registrations/{id}/hub", h.atHub(server.DeleteDevice))
	h.handle("GET /registrations/{id}/hub/modules", h.modules)
	h.handle("POST /registrations/{id}/hub/messages", h.sendMessage)
	return h, nil
}

// ConnectionString returns what SDKs need to use the service API at a host, which may contain
// a port. It contains the key.
func ConnectionString(server *simulator.Server, host string) string {
	return "HostName=" + host + ";SharedAccessKeyName=" + simulator.ServiceKeyName + ";SharedAccessKey=" + server.ServiceKey()
}

// Serves reports whether a request is for the service API, by its path. The case of the path
// does not matter, because SDKs use both enrollmentGroups and enrollmentgroups.
func Serves(r *http.Request) bool {
	first, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	return slices.Contains([]string{"enrollments", "enrollmentgroups", "registrations", "policy"}, strings.ToLower(first))
}

// response is a successful answer.
type response struct {
	status int // 0 means 200
	body   any // nil for none
	header http.Header
}

// failure is an error that the client gets.
type failure struct {
	code    int // the first three digits are the HTTP status
	message string
}

func (f *failure) Error() string { return f.message }

// asFailure returns what a client gets for an error. A change that makes the enrollments
// invalid is a mistake of the client.
func asFailure(err error) *failure {
	var f *failure
	switch {
	case errors.As(err, &f):
		return f
	case errors.As(err, new(*tomlfile.Error)):
		return &failure{400000, strings.ReplaceAll(err.Error(), "\n", "; ")}
	}
	return &failure{500000, err.Error()}
}

func refuse(code int, format string, args ...any) error {
	return &failure{code, fmt.Sprintf(format, args...)}
}

// handle adds a route with what all routes do: authentication, the checks of the request, and
// the form of the answer.
func (h *Handler) handle(pattern string, serve func(r *http.Request, body []byte) (*response, error)) {
	h.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		answer, err := h.serve(w, r, serve)
		if err != nil {
			h.fail(w, err)
			return
		}
		send(w, answer)
	})
}

func (h *Handler) serve(w http.ResponseWriter, r *http.Request, serve func(r *http.Request, body []byte) (*response, error)) (*response, error) {
	if err := h.authenticate(r); err != nil {
		return nil, err
	}
	if version := r.URL.Query().Get("api-version"); !scenario.IsAPIVersion(version) {
		return nil, refuse(400000, "The api-version %q is not supported.", version)
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		return nil, refuse(413000, "The body cannot be read: %v", err)
	}
	return serve(r, body)
}

// ServeHTTP answers a request of the service API.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	parts := strings.Split(strings.TrimSuffix(r.URL.EscapedPath(), "/"), "/")
	for i := range parts {
		if i != 2 { // the ID
			parts[i] = strings.ToLower(parts[i])
		}
	}
	path := strings.Join(parts, "/")
	if len(parts) == 2 {
		path += "/" // a bulk operation
	}
	if len(parts) == 3 && strings.EqualFold(parts[2], "query") && r.Method == http.MethodPost {
		path = strings.ToLower(path)
	}
	target, err := url.Parse(path)
	if err != nil {
		h.fail(w, refuse(400000, "The path is not valid: %v", err))
		return
	}
	target.RawQuery = r.URL.RawQuery
	again := r.Clone(r.Context())
	again.URL = target
	if h.has(again, again.Method) {
		h.mux.ServeHTTP(w, again)
		return
	}
	for _, method := range []string{http.MethodGet, http.MethodPut, http.MethodPost, http.MethodDelete} {
		if h.has(again, method) {
			h.fail(w, refuse(405000, "The path %s does not support the method %s.", r.URL.Path, r.Method))
			return
		}
	}
	h.fail(w, refuse(404000, "The service API has no path %s.", r.URL.Path))
}

// has reports whether there is a route for the request's path with a method.
func (h *Handler) has(r *http.Request, method string) bool {
	other := *r
	other.Method = method
	_, pattern := h.mux.Handler(&other)
	return pattern != ""
}

// send writes a successful answer.
func send(w http.ResponseWriter, answer *response) {
	for name, values := range answer.header {
		w.Header()[http.CanonicalHeaderKey(name)] = values
	}
	status := answer.status
	if status == 0 {
		status = http.StatusOK
	}
	write(w, status, answer.body)
}

func write(w http.ResponseWriter, status int, body any) {
	w.Header().Set(headerRequestID, newID())
	if body == nil {
		w.WriteHeader(status)
		return
	}
	text, err := enroll.JSON(body)
	if err != nil { // every value here came from JSON
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(text) //nolint:gosec // a browser does not take it for HTML
}

// fail writes an error in the form of the service.
func (h *Handler) fail(w http.ResponseWriter, err error) {
	f := asFailure(err)
	w.Header().Set(headerErrorCode, strconv.Itoa(f.code))
	write(w, f.code/1000, struct {
		ErrorCode  int    `json:"errorCode"`
		TrackingID string `json:"trackingId"`
		Message    string `json:"message"`
		Timestamp  string `json:"timestampUtc"`
	}{f.code, newID(), f.message, timestamp(h.now())})
}

// timestamp formats a time like the service.
func timestamp(t time.Time) string {
	return t.UTC().Truncate(100 * time.Nanosecond).Format("2006-01-02T15:04:05.9999999Z")
}

// page returns one page of items and the header that leads to the next one. id returns the ID
// by which the items are sorted; a continuation token is the last ID of a page, so that it
// survives changes.
func page[T any](r *http.Request, items []T, id func(T) string, itemType string) (*response, error) {
	limit := maxPage
	if text := r.Header.Get(headerMaxItems); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return nil, refuse(400000, "%s is %q, which is not a positive number.", headerMaxItems, text)
		}
		limit = min(n, maxPage)
	}
	slices.SortFunc(items, func(a, b T) int { return strings.Compare(strings.ToLower(id(a)), strings.ToLower(id(b))) })
	if token := r.Header.Get(headerContinuation); token != "" {
		after, err := base64.RawURLEncoding.DecodeString(token)
		if err != nil {
			return nil, refuse(400000, "%s is not a continuation token of this service.", headerContinuation)
		}
		items = slices.DeleteFunc(items, func(item T) bool { return strings.ToLower(id(item)) <= string(after) })
	}
	header := http.Header{headerItemType: {itemType}}
	if len(items) > limit {
		items = items[:limit]
		last := strings.ToLower(id(items[limit-1]))
		header.Set(headerContinuation, base64.RawURLEncoding.EncodeToString([]byte(last)))
	}
	return &response{body: items, header: header}, nil
}

// decode reads a JSON body. Like the device API, it refuses members that it does not know.
func decode(body []byte, into any) error {
	in := json.NewDecoder(strings.NewReader(string(body)))
	in.DisallowUnknownFields()
	if err := in.Decode(into); err != nil {
		return refuse(400000, "Deserialization error: %v", err)
	}
	if _, err := in.Token(); !errors.Is(err, io.EOF) {
		return refuse(400000, "Deserialization error: unexpected data after the JSON value")
	}
	return nil
}

// unchanged compares the If-Match header with an etag. A client may send the etag as the body
// has it, in quotes, or decoded.
func unchanged(r *http.Request, etag string) bool {
	match := r.Header.Get("If-Match")
	decoded, _ := base64.StdEncoding.DecodeString(etag)
	return match == "*" || slices.Contains([]string{etag, `"` + etag + `"`, string(decoded)}, match)
}

// registrationState is DeviceRegistrationState.
type registrationState struct {
	RegistrationID string          `json:"registrationId"`
	Created        string          `json:"createdDateTimeUtc"`
	AssignedHub    string          `json:"assignedHub"`
	DeviceID       string          `json:"deviceId"`
	Status         string          `json:"status"`
	Substatus      string          `json:"substatus"`
	Updated        string          `json:"lastUpdatedDateTimeUtc"`
	ETag           string          `json:"etag"`
	Payload        json.RawMessage `json:"payload,omitempty"`
}

func stateOf(r simulator.Registration) registrationState {
	return registrationState{
		RegistrationID: r.RegistrationID, Created: timestamp(r.Created), AssignedHub: r.Hub, DeviceID: r.DeviceID,
		Status: "assigned", Substatus: r.Substatus, Updated: timestamp(r.Updated), ETag: r.ETag, Payload: r.Payload,
	}
}

func (h *Handler) registration(r *http.Request, _ []byte) (*response, error) {
	record, found := h.server.Registration(r.PathValue("id"))
	if !found {
		return nil, refuse(404201, "Registration not found.")
	}
	return &response{body: stateOf(record)}, nil
}

func (h *Handler) removeRegistration(r *http.Request, _ []byte) (*response, error) {
	h.changing.Lock()
	defer h.changing.Unlock()
	record, found := h.server.Registration(r.PathValue("id"))
	switch {
	case !found:
		return nil, refuse(404201, "Registration not found.")
	case r.Header.Get("If-Match") != "" && !unchanged(r, record.ETag):
		return nil, refuse(412000, "The etag of the registration is %s.", record.ETag)
	}
	h.server.RemoveRegistration(record.RegistrationID)
	return &response{status: http.StatusNoContent}, nil
}

// revokeDevice revokes the certificates that were issued to a device. In Azure, this and
// revokePolicy are operations of Azure Device Registry.
func (h *Handler) revokeDevice(r *http.Request, _ []byte) (*response, error) {
	if !h.server.RevokeDevice(r.PathValue("id")) {
		return nil, refuse(404201, "Registration not found.")
	}
	return &response{status: http.StatusNoContent}, nil
}

// revokePolicy revokes the certificates that were issued to all devices.
func (h *Handler) revokePolicy(*http.Request, []byte) (*response, error) {
	return &response{status: http.StatusNoContent}, h.server.RevokePolicy()
}

// atHub changes a device at its hub. In Azure, this is an operation of the service API of IoT Hub.
func (h *Handler) atHub(change func(registrationID string) bool) func(*http.Request, []byte) (*response, error) {
	return func(r *http.Request, _ []byte) (*response, error) {
		if !change(r.PathValue("id")) {
			return nil, refuse(404001, "The device does not exist at its hub.")
		}
		return &response{status: http.StatusNoContent}, nil
	}
}

// sendMessage sends the body of the request to a device, as a cloud-to-device message.
func (h *Handler) sendMessage(r *http.Request, body []byte) (*response, error) {
	if refused := h.server.SendToDevice(r.PathValue("id"), body); refused != nil {
		return nil, refuse(refused.Code, "%s: %s.", refused.Message, refused.Reason)
	}
	return &response{status: http.StatusNoContent}, nil
}

// module is a module identity without its keys.
type module struct {
	ModuleID           string  `json:"moduleId"`
	ManagedBy          *string `json:"managedBy"`
	GenerationID       string  `json:"generationId"`
	ETag               string  `json:"etag"`
	AuthenticationType string  `json:"authenticationType"`
}

// modules returns the module identities of a device at its hub.
func (h *Handler) modules(r *http.Request, _ []byte) (*response, error) {
	all := h.server.Modules(r.PathValue("id"))
	list := make([]module, 0, len(all))
	for _, m := range all {
		list = append(list, module{m.ModuleID, m.ManagedBy, m.GenerationID, m.ETag, m.Authentication.Type})
	}
	return &response{body: list}, nil
}

// queryRegistrations returns the registrations of an enrollment group.
func (h *Handler) queryRegistrations(r *http.Request, _ []byte) (*response, error) {
	e, name := h.server.Enrollments(), r.PathValue("id")
	if e.FindGroup(name) < 0 {
		return nil, refuse(404202, "Enrollment group not found.")
	}
	list := []registrationState{}
	for _, record := range h.server.Registrations() {
		if strings.EqualFold(record.Group, name) {
			list = append(list, stateOf(record))
		}
	}
	return page(r, list, func(s registrationState) string { return s.RegistrationID }, "Registration")
}
