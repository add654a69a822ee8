package hub

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/dpsd-project/dpsd/simulator/enroll"
	"github.com/dpsd-project/dpsd/simulator/scenario"
)

// The error codes of the registry of module identities.
const (
	codeVersion        = 400001
	codeArgument       = 400004
	codeSerialization  = 400006
	codeModuleExists   = 409301
	codePrecondition   = 412001
	codeTooManyModules = 413003
)

// answerModules answers a request of a device for its own module identities:
//
//	GET    /devices/{id}/modules
//	GET    /devices/{id}/modules/{module}
//	PUT    /devices/{id}/modules/{module}
//	DELETE /devices/{id}/modules/{module}
//
// The Module of u is empty for the first of them.
func (h *Hub) answerModules(u User, r *http.Request, body []byte) Response {
	fail := func(code int, message, reason string) Response {
		return Failure(code/1000, refuse(code, message, reason))
	}
	if !scenario.IsAPIVersion(u.APIVersion) {
		return fail(codeVersion, "InvalidProtocolVersion", "the api-version is not of the form YYYY-MM-DD[-preview]")
	}
	if u.Module == "" {
		if r.Method != http.MethodGet {
			return unsupported(r)
		}
		list := []moduleAnswer{}
		for _, m := range h.Modules.List(u.Hub, u.Device) {
			list = append(list, h.module(u, m))
		}
		return answer(list, "")
	}
	if !moduleID.MatchString(u.Module) {
		return fail(codeArgument, "ArgumentInvalid", "a device cannot manage a module with the name "+enroll.Quote(u.Module))
	}
	match, some := r.Header.Get("If-Match"), len(r.Header.Values("If-Match")) > 0
	missing := func() Response {
		return fail(codeModuleNotFound, "ModuleNotFound", "the device has no module "+enroll.Quote(u.Module))
	}
	stale := func(m Module) Response {
		return fail(codePrecondition, "PreconditionFailed", fmt.Sprintf("If-Match is %s, and the etag of the module is %q", enroll.Quote(match), m.ETag))
	}
	result := Response{}
	switch r.Method {
	case http.MethodGet:
		m, found := h.Modules.get(u)
		if !found {
			return missing()
		}
		return answer(h.module(u, m), m.ETag)
	case http.MethodDelete:
		h.Modules.change(u, func(device map[string]Module) bool {
			m, found := device[u.Module]
			switch {
			case !found:
				result = missing()
			case !matches(match, m.ETag):
				result = stale(m)
			default:
				delete(device, u.Module)
				result = Response{Status: http.StatusNoContent}
			}
			return result.Refused == nil
		})
		if result.Refused == nil {
			h.Twins.forget(u)
			h.Disconnect(u, "404010 ModuleNotFound: the module has been deleted")
		}
		return result
	case http.MethodPut:
		wanted, refused := parseModule(u, body)
		if refused != nil {
			return Failure(refused.Code/1000, refused)
		}
		h.Modules.change(u, func(device map[string]Module) bool {
			m, found := device[u.Module]
			switch {
			case some && !found:
				result = missing()
			case some && !matches(match, m.ETag):
				result = stale(m)
			case found && !some:
				result = exists(u)
			case !found && len(device) >= MaxModules:
				result = fail(codeTooManyModules, "TooManyModulesOnDevice", fmt.Sprintf("the device has %d modules, which is the limit", len(device)))
			default:
				m = wanted.apply(m)
				device[u.Module] = m
				result = answer(h.module(u, m), m.ETag)
			}
			return result.Refused == nil
		})
		return result
	}
	return unsupported(r)
}

// matches reports whether a value of If-Match matches an etag. An empty value matches nothing: an
// unconditional request has an asterisk.
func matches(value, etag string) bool {
	return value == "*" || strings.TrimPrefix(value, "W/") == `"`+etag+`"`
}

// exists returns the response to the creation of a module that already exists. As in the service, the
// error has the newer form.
func exists(u User) Response {
	text := fmt.Sprintf("Device %s in IotHub %s already contains Module %s.", u.Device, u.Hub, u.Module)
	body, _ := enroll.JSON(struct { // numbers and strings cannot fail
		ErrorCode int    `json:"errorCode"`
		Message   string `json:"message"`
	}{codeModuleExists, text})
	return Response{Status: http.StatusConflict, Body: body, Refused: refuse(codeModuleExists, "ModuleAlreadyExistsOnDevice", "the module exists; to change it, send If-Match")}
}

// moduleAnswer is a module identity with its connection state.
type moduleAnswer struct {
	Module
	ConnectionState           string `json:"connectionState"`
	CloudToDeviceMessageCount int    `json:"cloudToDeviceMessageCount"`
}

func (h *Hub) module(u User, m Module) moduleAnswer {
	state := "Disconnected"
	if h.Connected(User{Hub: u.Hub, Device: u.Device, Module: m.ModuleID}) {
		state = "Connected"
	}
	return moduleAnswer{Module: m, ConnectionState: state}
}

func answer(v any, etag string) Response {
	body, err := enroll.JSON(v)
	if err != nil { // every value here came from JSON
		return Response{Status: http.StatusInternalServerError}
	}
	return Response{Status: http.StatusOK, Body: body, ETag: etag}
}

// wantedModule is the body of a PUT. Members that only the registry sets are ignored, so that a client
// can send back a module that it has received.
type wantedModule struct {
	ModuleID       string          `json:"moduleId"`
	DeviceID       string          `json:"deviceId"`
	ManagedBy      *string         `json:"managedBy"`
	Authentication *Authentication `json:"authentication"`

	ETag                       json.RawMessage `json:"etag"`
	GenerationID               json.RawMessage `json:"generationId"`
	ConnectionState            json.RawMessage `json:"connectionState"`
	ConnectionStateUpdatedTime json.RawMessage `json:"connectionStateUpdatedTime"`
	LastActivityTime           json.RawMessage `json:"lastActivityTime"`
	CloudToDeviceMessageCount  json.RawMessage `json:"cloudToDeviceMessageCount"`
}

// parseModule checks the body of a PUT. In the result, Authentication is complete, or nil if the
// body has none.
func parseModule(u User, body []byte) (wantedModule, *enroll.Refusal) {
	var w wantedModule
	in := json.NewDecoder(bytes.NewReader(body))
	in.DisallowUnknownFields()
	if err := in.Decode(&w); err != nil || !atEnd(in) {
		return w, refuse(codeSerialization, "SerializationError", "the body is not the JSON object of a module")
	}
	invalid := func(reason string) (wantedModule, *enroll.Refusal) {
		return w, refuse(codeArgument, "ArgumentInvalid", reason)
	}
	switch {
	case w.ModuleID != u.Module:
		return invalid("moduleId in the body is not that in the path: " + enroll.Quote(w.ModuleID))
	case w.DeviceID != u.Device:
		return invalid("deviceId in the body is not that in the path: " + enroll.Quote(w.DeviceID))
	case w.Authentication == nil:
		return w, nil
	}
	complete, err := w.Authentication.complete()
	if err != nil {
		return invalid(err.Error())
	}
	w.Authentication = &complete
	return w, nil
}

// atEnd reports whether nothing follows the last value. Decoder.More is for arrays and objects: it
// also returns false before a bracket.
func atEnd(in *json.Decoder) bool {
	_, err := in.Token()
	return errors.Is(err, io.EOF)
}

// apply returns the changed or, for the zero value, the new identity.
func (w wantedModule) apply(m Module) Module {
	if m.GenerationID == "" {
		m = Module{ModuleID: w.ModuleID, DeviceID: w.DeviceID, GenerationID: newGeneration()}
		m.Authentication, _ = Authentication{}.complete() // the zero value is valid
	}
	m.ETag, m.ManagedBy = newETag(), w.ManagedBy
	if w.Authentication != nil {
		m.Authentication = *w.Authentication
	}
	return m
}
