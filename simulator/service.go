package simulator

import (
	"bytes"
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/dpsd-project/dpsd/simulator/enroll"
	"github.com/dpsd-project/dpsd/simulator/hub"
	"github.com/dpsd-project/dpsd/simulator/scenario"
)

// seed derives all values that look random from a number and a purpose, so that a second
// run returns the same values regardless of the order of the devices.
type seed uint64

func (s seed) draw(purpose string, n int) []byte {
	var key [8]byte
	binary.BigEndian.PutUint64(key[:], uint64(s))
	var out []byte
	for i := byte(0); len(out) < n; i++ {
		mac := hmac.New(sha256.New, key[:])
		mac.Write([]byte{i})
		mac.Write([]byte(purpose))
		out = mac.Sum(out)
	}
	return out[:n]
}

func (s seed) guid(purpose string) string { return guid(s.draw(purpose, 16)) }

// guid formats 16 bytes that look random, which it may change.
func guid(b []byte) string {
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80 // RFC 9562 version 4
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// operationStatus is RegistrationOperationStatus, with its members in the order of the
// service.
type operationStatus struct {
	OperationID string             `json:"operationId"`
	Status      string             `json:"status"`
	State       *registrationState `json:"registrationState,omitempty"`
}

// registrationState is DeviceRegistrationResult.
type registrationState struct {
	X509           *struct{} `json:"x509,omitempty"`
	RegistrationID string    `json:"registrationId"`
	Created        string    `json:"createdDateTimeUtc,omitempty"`
	AssignedHub    string    `json:"assignedHub,omitempty"`
	DeviceID       string    `json:"deviceId,omitempty"`
	Status         string    `json:"status"`
	Substatus      string    `json:"substatus,omitempty"`
	ErrorCode      int       `json:"errorCode,omitempty"`
	ErrorMessage   string    `json:"errorMessage,omitempty"`
	Updated        string    `json:"lastUpdatedDateTimeUtc,omitempty"`
	ETag           string    `json:"etag,omitempty"`
	Payload        any       `json:"payload,omitempty"`
	Profile        string    `json:"connectionProfile,omitempty"`
	Chain          any       `json:"issuedCertificateChain,omitempty"`
}

// errorDetails is ProvisioningServiceErrorDetails.
type errorDetails struct {
	ErrorCode  int    `json:"errorCode"`
	TrackingID string `json:"trackingId"`
	Message    string `json:"message"`
	Timestamp  string `json:"timestampUtc"`
}

// without removes members by name, at any depth. The other members are then in alphabetical order.
func without(names []string, text []byte) ([]byte, error) {
	in := json.NewDecoder(bytes.NewReader(text))
	in.UseNumber()
	var members map[string]any
	if err := in.Decode(&members); err != nil {
		return nil, err
	}
	drop(names, members)
	return enroll.JSON(members)
}

func drop(names []string, members map[string]any) {
	for _, name := range names {
		delete(members, name)
	}
	for _, value := range members {
		if inner, ok := value.(map[string]any); ok {
			drop(names, inner)
		}
	}
}

// timestamp formats a time with up to seven fractional digits and without trailing zeros.
func timestamp(t time.Time) string {
	return t.UTC().Truncate(100 * time.Nanosecond).Format("2006-01-02T15:04:05.9999999Z")
}

// reply is the service's answer to a request.
type reply struct {
	status     int
	retryAfter string // text of retry-after, "none" for none
	body       any
	refusal    *enroll.Refusal // nil unless the device does not get what it wants
}

// answer names a reply that refuses a device.
func (r reply) answer() string {
	switch body := r.body.(type) {
	case errorDetails:
		return fmt.Sprintf("%d, error code %d", r.status, body.ErrorCode)
	case operationStatus:
		return fmt.Sprintf("%d, status %s", r.status, body.Status)
	}
	return fmt.Sprint(r.status)
}

// scripted explains a refusal that is a fault of the scenario.
var scripted = enroll.Explanation{Reason: "a scenario rule refuses this"}

func explainLimit(poll bool, polls, registers int) enroll.Explanation {
	if poll {
		return enroll.Explanation{Reason: "the device polls too often", Expected: fmt.Sprintf("at most %d polls in 10 s, as in the service", polls), Advice: "A device must wait for the time in retry-after before it polls."}
	}
	return enroll.Explanation{Reason: "too many devices are registering", Expected: fmt.Sprintf("at most %d registrations per minute", registers)}
}

func explainOperation(current, given string) enroll.Explanation {
	e := enroll.Explanation{Reason: "the operation is unknown", Given: enroll.Quote(given), Advice: "The device must send the operationId from the answer to its register request."}
	if current == "" {
		e.Advice = "The device must register before it polls."
		return e
	}
	e.Expected = enroll.Quote(current)
	return e
}

// encode returns the body as the rule modifies it.
func (r reply) encode(rule *Rule) ([]byte, error) {
	text, err := enroll.JSON(r.body)
	if err == nil && len(rule.Omit) > 0 {
		text, err = without(rule.Omit, text)
	}
	if rule.Body != nil {
		text = []byte(*rule.Body)
	}
	if n := rule.Pad - len(text); n > 0 {
		text = append(text, bytes.Repeat([]byte{' '}, n)...)
	}
	if rule.Cut > 0 && rule.Cut < len(text) {
		text = text[:rule.Cut]
	}
	return text, err
}

// device is what the running service knows about a registration ID.
type device struct {
	operationID string
	pending     int      // remaining polls that are answered with "assigning"
	outcome     *outcome // of the operation
	registered  int      // number of registrations
	replies     int      // for tracking IDs
	polls       limiter
}

// outcome is the result of an operation. The service computes it when the operation begins,
// and applies it when it sends it to the device.
type outcome struct {
	assignment
	csr    bool // the request contained a CSR
	chain  any  // issued certificates, normally a list of texts; nil for none
	failed *enroll.Refusal
	keep   bool // the registration record must not change, except for CertificateID
}

// lastSticky is the last api-version under which a device keeps its hub regardless of the
// re-provision policy, DPS page "IoT Hub Device reprovisioning concepts".
const lastSticky = "2018-04-01"

// service is DPS without the network: it answers two kinds of request.
type service struct {
	seed     seed
	settings func() Settings
	records  *assignments
	issuer   *issuer
	onIssue  func(Issued)

	mu        sync.Mutex
	devices   map[string]*device // by lower-case registration ID
	registers limiter
}

// operationID has the observed format: a generation, 16 hexadecimal digits that depend only
// on the registration ID, and a GUID.
func (s *service) newOperationID(registrationID string, n int) string {
	sum := sha256.Sum256([]byte(strings.ToLower(registrationID)))
	return fmt.Sprintf("5.%x.%s", sum[:8], s.seed.guid(fmt.Sprintf("operation %s %d", registrationID, n)))
}

// answer returns the reply to a request of an authenticated device, as modified by the
// rule.
func (s *service) answer(req request, body []byte, who *principal, rule *Rule, now time.Time) reply {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := strings.ToLower(who.registrationID)
	d := cmp.Or(s.devices[key], &device{})
	s.devices[key] = d
	d.replies++
	set := s.settings()

	failure := func(status int, why *enroll.Refusal) reply {
		return s.failure(who.registrationID, d.replies, status, why, now)
	}
	if rule.Status >= 400 && rule.State == "" {
		return failure(rule.Status, &enroll.Refusal{
			Code: cmp.Or(rule.ErrorCode, rule.Status*1000), Message: cmp.Or(rule.ErrorMessage, "The scenario says so."),
			Explanation: scripted,
		})
	}
	refuse := func(why *enroll.Refusal) reply { return failure(why.Code/1000, why) }
	if who.refused != nil {
		return refuse(who.refused)
	}
	var wait time.Duration
	if req.poll {
		wait = d.polls.take(now, *set.PollLimit, pollInterval)
	} else {
		wait = s.registers.take(now, set.RegisterLimit, registerInterval)
	}
	if wait > 0 {
		r := refuse(&enroll.Refusal{Code: 429001, Message: "Too many requests.", Explanation: explainLimit(req.poll, *set.PollLimit, set.RegisterLimit)})
		wholeSeconds := int((wait + time.Second - 1) / time.Second)
		r.retryAfter = cmp.Or(set.ThrottleRetryAfter, strconv.Itoa(wholeSeconds))
		return r
	}
	if req.poll {
		if d.operationID == "" || req.operationID != d.operationID {
			return refuse(&enroll.Refusal{Code: 404203, Message: "Operation not found.", Explanation: explainOperation(d.operationID, req.operationID)})
		}
	} else {
		wanted, wrong := parseBody(body, who.registrationID, set.StrictJSON)
		if wrong != nil {
			return refuse(wrong)
		}
		var o *outcome
		if !who.enrollment.Disabled {
			var err error
			if o, err = s.begin(who, d.registered+1, wanted, rule.Chain, now); err != nil {
				return refuse(badRequest(enroll.Explanation{Reason: err.Error()}))
			}
		}
		if o != nil {
			d.registered++
			d.operationID = s.newOperationID(who.registrationID, d.registered)
			d.pending = *set.Polls
			d.outcome = o
		}
	}

	if d.outcome == nil { // disabled; a rule may still send an assignment
		d.outcome, _ = s.begin(who, 0, registration{}, "", now) // without a request there is no error
	}
	state := rule.State
	if state == "" {
		switch {
		case who.enrollment.Disabled:
			state = "disabled"
		case req.poll && d.pending <= 1 || !req.poll && d.pending == 0:
			if state = "assigned"; d.outcome.failed != nil {
				state = "failed"
			}
		default:
			state = "assigning"
		}
		if req.poll && d.pending > 1 {
			d.pending--
		}
	}
	r := reply{status: 200, retryAfter: "none"}
	if state == "assigning" {
		r.status, r.retryAfter = 202, set.RetryAfter
	} else { // the service stores the outcome
		o := d.outcome
		if !o.keep {
			o.Updated = now
		}
		if state == "assigned" && o.failed == nil && (!o.keep || o.csr) {
			s.records.put(o.assignment)
		}
	}
	r.status = cmp.Or(rule.Status, r.status)
	switch {
	case rule.State != "" && rule.State != "assigning" && rule.State != "assigned":
		r.refusal = &enroll.Refusal{Code: rule.ErrorCode, Message: rule.ErrorMessage, Explanation: scripted}
	case state == "disabled":
		r.refusal = &enroll.Refusal{Explanation: enroll.Explanation{Reason: "the enrollment of the device is disabled"}}
	case state == "failed":
		r.refusal = d.outcome.failed
	}
	r.body = s.status(state, !req.poll, who, d, rule)
	return r
}

// lookup returns the state of a registration that has ended or is in progress. Certificates
// are returned only once, by the operation.
func (s *service) lookup(who *principal, now time.Time) reply {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := strings.ToLower(who.registrationID)
	d := cmp.Or(s.devices[key], &device{})
	s.devices[key] = d
	d.replies++
	refuse := func(why *enroll.Refusal) reply {
		return s.failure(who.registrationID, d.replies, why.Code/1000, why, now)
	}
	if who.refused != nil {
		return refuse(who.refused)
	}
	record, assigned := s.records.get(who.registrationID)
	if !assigned && d.operationID == "" {
		return refuse(&enroll.Refusal{Code: 404201, Message: "Registration not found.", Explanation: enroll.Explanation{
			Reason: "the device has not registered", Advice: "A lookup returns the state of a registration. It does not register the device.",
		}})
	}
	state := "assigning"
	if assigned {
		state = "assigned"
	}
	found := &device{outcome: &outcome{assignment: record}}
	return reply{status: 200, retryAfter: "none", body: s.status(state, false, who, found, &Rule{}).State}
}

// failure returns the n-th reply to a device as an error.
func (s *service) failure(registrationID string, n, status int, why *enroll.Refusal, now time.Time) reply {
	details := errorDetails{ErrorCode: why.Code, Message: why.Message, Timestamp: timestamp(now)}
	if why.Code != codeUndecodable { // as in two published answers
		details.TrackingID = s.seed.guid(fmt.Sprintf("tracking %s %d", registrationID, n))
	}
	return reply{status: status, retryAfter: "none", body: details, refusal: why}
}

// begin computes how an operation will end. kind is the Rule.Chain of an issued certificate. An
// error is one of the request.
func (s *service) begin(who *principal, n int, wanted registration, kind string, now time.Time) (*outcome, error) {
	grant := who.enrollment
	o := &outcome{assignment: assignment{RegistrationID: who.registrationID, Group: grant.Group, Created: now, Updated: now, Substatus: "initialAssignment"}}
	before, again := s.records.get(who.registrationID)
	if wanted.csr != nil {
		o.csr = true
		before.CertificateID = cmp.Or(before.CertificateID, guid(randomBytes("", 16)))
		var err error
		if o.chain, err = s.certify(who, wanted.csr, before.CertificateID, kind, now); err != nil {
			return nil, err
		}
	}
	o.CertificateID = before.CertificateID
	if again {
		o.Created, o.Substatus = before.Created, before.Substatus
		if grant.Reprovision == "never" || who.apiVersion != "" && who.apiVersion <= lastSticky {
			o.assignment, o.keep = before, true
			return o, nil
		}
	}
	o.Attestation = hub.ByKey
	if who.certificate {
		o.Attestation = hub.ByCertificate
	}
	o.DeviceID = cmp.Or(who.enrollment.DeviceID, who.registrationID)
	placed := who.enrollment.Place(who.registrationID, o.DeviceID, wanted.payload)
	if placed.Failed != nil {
		o.failed = placed.Failed
		return o, nil
	}
	o.Hub, o.Profile = placed.Hub.Name, placed.Hub.ConnectionProfile
	if placed.Payload != "" {
		o.Payload = json.RawMessage(placed.Payload)
	}
	if again && !strings.EqualFold(before.Hub, o.Hub) {
		o.Substatus = "deviceDataMigrated"
		if grant.Reprovision == "reset" {
			o.Substatus = "deviceDataReset"
		}
	}
	o.ETag = base64.StdEncoding.EncodeToString([]byte(`"` + s.seed.guid(fmt.Sprintf("etag %s %d", who.registrationID, n)) + `"`))
	return o, nil
}

// certify issues a certificate for a CSR and returns its chain. The chain is nil if the
// enrollment has no credential policy and the settings ignore a CSR then.
func (s *service) certify(who *principal, member json.RawMessage, id, kind string, now time.Time) (any, error) {
	set := s.settings()
	switch {
	case !slices.Contains(who.features, scenario.FeatureCSR):
		return nil, errors.New("the api-version does not support certificates for a csr")
	case who.enrollment.NoCertificates && set.WithoutPolicy == scenario.PolicyAssign:
		return nil, nil
	case who.enrollment.NoCertificates:
		return nil, errors.New("the enrollment does not issue certificates for a csr")
	}
	csr, err := parseCSR(member, who.registrationID, set.CSRKeys)
	if err != nil {
		return nil, err
	}
	is, err := s.issuer.get()
	if err != nil {
		return nil, err
	}
	o := order{name: csr.Subject.CommonName, key: csr.PublicKey, id: id, from: now.Add(-early)}
	if set.CertificateDelay > 0 {
		now = now.Add(set.CertificateDelay)
		o.from = now
	}
	o.until = now.Add(cmp.Or(who.enrollment.CertificateLife, set.CertificateLife))
	chain, err := is.issue(o, kind)
	if err != nil {
		return nil, err
	}
	s.onIssue(Issued{RegistrationID: who.registrationID, Certificate: chain[0]})
	return encodeChain(chain, kind, set), nil
}

// concernsCSR reports whether a request is a register request with a CSR, or a poll of its
// operation.
func (s *service) concernsCSR(registrationID string, req request, body []byte) bool {
	if !req.poll {
		wanted, wrong := parseBody(body, registrationID, s.settings().StrictJSON)
		return wrong == nil && wanted.csr != nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.devices[strings.ToLower(registrationID)]
	return d != nil && d.outcome != nil && d.outcome.csr
}

// status builds a RegistrationOperationStatus. The answer to a register request that is
// still in progress has no registrationState.
func (s *service) status(state string, first bool, who *principal, d *device, rule *Rule) operationStatus {
	result := &registrationState{RegistrationID: who.registrationID, Status: state}
	o := d.outcome
	switch state {
	case "assigned":
		if who.certificate {
			result.X509 = &struct{}{}
		}
		result.Created, result.Updated = timestamp(o.Created), timestamp(o.Updated)
		result.AssignedHub = cmp.Or(rule.AssignedHub, o.Hub)
		result.DeviceID = cmp.Or(rule.DeviceID, o.DeviceID)
		result.Substatus = cmp.Or(rule.Substatus, o.Substatus)
		result.ETag, result.Chain = o.ETag, o.chain
		if payload := cmp.Or(rule.Payload, string(o.Payload)); json.Valid([]byte(payload)) {
			result.Payload = json.RawMessage(payload)
		} else if payload != "" { // a scenario may contain invalid JSON
			result.Payload = payload
		}
		if slices.Contains(who.features, scenario.FeatureProfile) {
			result.Profile = o.Profile
		}
	case "failed":
		failed := enroll.Refusal{Code: 400207, Message: "Custom allocation failed with status code: 400"}
		if o.failed != nil {
			failed = *o.failed
		}
		result.Created, result.Updated = timestamp(o.Created), timestamp(o.Updated)
		result.ErrorCode = cmp.Or(rule.ErrorCode, failed.Code)
		result.ErrorMessage = cmp.Or(rule.ErrorMessage, failed.Message)
	}
	body := operationStatus{OperationID: d.operationID, Status: state, State: result}
	if state == "disabled" {
		body.OperationID = ""
	}
	if state == "assigning" && first {
		body.State = nil
	}
	return body
}

// unasked builds the reply of a service that answers before it has received a request.
func (s *service) unasked(who *principal, rule *Rule, now time.Time) reply {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := &device{operationID: s.newOperationID(who.registrationID, 0)}
	d.outcome, _ = s.begin(who, 0, registration{}, "", now) // without a request there is no error
	return reply{status: cmp.Or(rule.Status, 200), retryAfter: "none", body: s.status(rule.State, false, who, d, rule)}
}
