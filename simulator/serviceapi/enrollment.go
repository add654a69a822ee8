package serviceapi

import (
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // the service names certificates by SHA-1 too; nothing is signed with it
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/simulator/enroll"
)

// enrollment is IndividualEnrollment or EnrollmentGroup.
type enrollment struct {
	RegistrationID     string             `json:"registrationId,omitempty"`
	EnrollmentGroupID  string             `json:"enrollmentGroupId,omitempty"`
	DeviceID           string             `json:"deviceId,omitempty"`
	RegistrationState  json.RawMessage    `json:"registrationState,omitempty"` // ignored in a request
	Attestation        *attestation       `json:"attestation,omitempty"`
	IotHubHostName     string             `json:"iotHubHostName,omitempty"`
	ETag               string             `json:"etag,omitempty"`
	ProvisioningStatus string             `json:"provisioningStatus,omitempty"`
	ReprovisionPolicy  *reprovisionPolicy `json:"reprovisionPolicy,omitempty"`
	AllocationPolicy   string             `json:"allocationPolicy,omitempty"`
	IotHubs            []string           `json:"iotHubs,omitempty"`
	properties
}

// properties are the members that have no effect in the simulator. It stores and returns them.
type properties struct {
	InitialTwin                json.RawMessage `json:"initialTwin,omitempty"`
	Capabilities               json.RawMessage `json:"capabilities,omitempty"`
	OptionalDeviceInformation  json.RawMessage `json:"optionalDeviceInformation,omitempty"`
	CustomAllocationDefinition json.RawMessage `json:"customAllocationDefinition,omitempty"`
	Created                    string          `json:"createdDateTimeUtc,omitempty"`
	Updated                    string          `json:"lastUpdatedDateTimeUtc,omitempty"`
}

// attestation is AttestationMechanism.
type attestation struct {
	Type         string           `json:"type"`
	TPM          json.RawMessage  `json:"tpm,omitempty"`
	X509         *x509Attestation `json:"x509,omitempty"`
	SymmetricKey *symmetricKey    `json:"symmetricKey,omitempty"`
}

type symmetricKey struct {
	PrimaryKey   string `json:"primaryKey,omitempty"`
	SecondaryKey string `json:"secondaryKey,omitempty"`
}

type x509Attestation struct {
	ClientCertificates  *certificates   `json:"clientCertificates,omitempty"`
	SigningCertificates *certificates   `json:"signingCertificates,omitempty"`
	CAReferences        json.RawMessage `json:"caReferences,omitempty"`
}

type certificates struct {
	Primary   *certificate `json:"primary,omitempty"`
	Secondary *certificate `json:"secondary,omitempty"`
}

// certificate is X509CertificateWithInfo.
type certificate struct {
	Certificate string           `json:"certificate,omitempty"` // PEM, or base64 of PEM or DER
	Info        *certificateInfo `json:"info,omitempty"`
}

type certificateInfo struct {
	SubjectName      string `json:"subjectName,omitempty"`
	SHA1Thumbprint   string `json:"sha1Thumbprint,omitempty"`
	SHA256Thumbprint string `json:"sha256Thumbprint,omitempty"`
	IssuerName       string `json:"issuerName,omitempty"`
	NotBefore        string `json:"notBeforeUtc,omitempty"`
	NotAfter         string `json:"notAfterUtc,omitempty"`
	SerialNumber     string `json:"serialNumber,omitempty"`
	Version          int    `json:"version,omitempty"`
}

type reprovisionPolicy struct {
	UpdateHubAssignment bool `json:"updateHubAssignment"`
	MigrateDeviceData   bool `json:"migrateDeviceData"`
}

// reprovision maps the values of a Grant to policies. An empty value is "migrate".
var reprovision = map[string]reprovisionPolicy{
	"migrate": {true, true}, "reset": {true, false}, "never": {false, false},
}

// allocation maps the values of the API to those of a Grant.
var allocation = map[string]string{"hashed": "hashed", "geoLatency": "lowest-latency", "static": "static", "custom": "custom"}

// item is an enrollment in the form of the file, individual or group.
type item struct {
	individual *enroll.Individual // nil for a group
	group      *enroll.Group      // nil for an individual enrollment
}

// parts returns what both kinds have.
func (i item) parts() (*enroll.Attestation, *enroll.Grant) {
	if i.individual != nil {
		return &i.individual.Attestation, &i.individual.Grant
	}
	return &i.group.Attestation, &i.group.Grant
}

// kind is one of the two kinds of enrollment.
type kind interface {
	path() string
	itemType() string
	// notFound and exists are the errors of a missing and of an unexpected enrollment.
	notFound() error
	exists() error
	// all returns copies of all enrollments, and find of one.
	all() []item
	find(id string) (item, bool)
	// empty returns a new enrollment.
	empty(id string) item
	// id returns the ID that a request's body has.
	id(e enrollment) string
	// removal is the change that removes an enrollment.
	removal(id string) enroll.Change
}

type individuals struct{ server *simulator.Server }

func (individuals) path() string     { return "/enrollments" }
func (individuals) itemType() string { return "IndividualEnrollment" }
func (individuals) notFound() error  { return refuse(404201, "Enrollment not found.") }
func (individuals) exists() error {
	return refuse(409201, "Enrollment already exists; an update requires If-Match.")
}
func (individuals) id(e enrollment) string { return e.RegistrationID }
func (individuals) empty(id string) item {
	return item{individual: &enroll.Individual{RegistrationID: id}}
}
func (individuals) removal(id string) enroll.Change { return enroll.Change{RemoveIndividual: id} }

func (k individuals) all() []item {
	e := k.server.Enrollments()
	all := make([]item, 0, len(e.Individuals))
	for _, i := range e.Individuals {
		all = append(all, item{individual: &i})
	}
	return all
}

func (k individuals) find(id string) (item, bool) {
	e := k.server.Enrollments()
	i := e.FindIndividual(id)
	if i < 0 {
		return item{}, false
	}
	found := e.Individuals[i]
	return item{individual: &found}, true
}

type groups struct{ server *simulator.Server }

func (groups) path() string     { return "/enrollmentgroups" }
func (groups) itemType() string { return "EnrollmentGroup" }
func (groups) notFound() error  { return refuse(404202, "Enrollment group not found.") }
func (groups) exists() error {
	return refuse(409203, "Enrollment group already exists; an update requires If-Match.")
}
func (groups) id(e enrollment) string          { return e.EnrollmentGroupID }
func (groups) empty(id string) item            { return item{group: &enroll.Group{Name: id}} }
func (groups) removal(id string) enroll.Change { return enroll.Change{RemoveGroup: id} }

func (k groups) all() []item {
	e := k.server.Enrollments()
	all := make([]item, 0, len(e.Groups))
	for _, g := range e.Groups {
		all = append(all, item{group: &g})
	}
	return all
}

func (k groups) find(id string) (item, bool) {
	e := k.server.Enrollments()
	i := e.FindGroup(id)
	if i < 0 {
		return item{}, false
	}
	found := e.Groups[i]
	return item{group: &found}, true
}

// change is what puts an item into the enrollments.
func (i item) change() enroll.Change { return enroll.Change{Individual: i.individual, Group: i.group} }

// etag depends on everything that the file has about the enrollment, so it survives a restart
// and changes with an edit of the file.
func (i item) etag() string {
	text, err := json.Marshal([]any{i.individual, i.group})
	if err != nil { // every value came from TOML or JSON
		text = nil
	}
	sum := sha256.Sum256(text)
	return base64.StdEncoding.EncodeToString(fmt.Appendf(nil, `"%s"`, guid(sum[:16])))
}

func guid(b []byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // it never fails
	return guid(b[:])
}

// render returns an enrollment in the form of the API. Only withKeys includes the keys.
func (h *Handler) render(i item, withKeys bool) (enrollment, error) {
	a, g := i.parts()
	policy, ok := reprovision[g.Reprovision]
	if !ok {
		policy = reprovision["migrate"]
	}
	e := enrollment{
		ETag:               i.etag(),
		ProvisioningStatus: "enabled",
		ReprovisionPolicy:  &policy,
		AllocationPolicy:   "hashed",
		IotHubs:            g.Hubs,
	}
	if g.Disabled {
		e.ProvisioningStatus = "disabled"
	}
	for name, value := range allocation {
		if value == g.Allocation {
			e.AllocationPolicy = name
		}
	}
	if g.Properties != "" {
		if err := json.Unmarshal([]byte(g.Properties), &e.properties); err != nil {
			return e, fmt.Errorf("properties: %w", err)
		}
	}
	var err error
	if e.Attestation, err = renderAttestation(i, a, withKeys); err != nil {
		return e, err
	}
	if i.group != nil {
		e.EnrollmentGroupID = i.group.Name
		return e, nil
	}
	e.RegistrationID, e.DeviceID = i.individual.RegistrationID, i.individual.DeviceID
	if record, found := h.server.Registration(e.RegistrationID); found {
		e.RegistrationState, err = enroll.JSON(stateOf(record))
	}
	return e, err
}

func renderAttestation(i item, a *enroll.Attestation, withKeys bool) (*attestation, error) {
	if a.Type == "symmetric-key" {
		out := &attestation{Type: "symmetricKey"}
		if withKeys {
			primary, secondary, err := a.Keys()
			if err != nil {
				return nil, err
			}
			out.SymmetricKey = &symmetricKey{primary, secondary}
		}
		return out, nil
	}
	out := &attestation{Type: "x509", X509: &x509Attestation{}}
	if i.individual != nil && i.individual.Thumbprint != "" {
		info := &certificateInfo{}
		if thumbprint := strings.ToUpper(strings.ReplaceAll(i.individual.Thumbprint, ":", "")); len(thumbprint) == 2*sha1.Size {
			info.SHA1Thumbprint = thumbprint
		} else {
			info.SHA256Thumbprint = thumbprint
		}
		out.X509.ClientCertificates = &certificates{Primary: &certificate{Info: info}}
		return out, nil
	}
	if i.individual != nil && i.individual.Certificate != "" {
		all, err := enroll.Certificates([]byte(i.individual.Certificate))
		out.X509.ClientCertificates = describe(all)
		return out, err
	}
	all, err := a.Authorities()
	out.X509.SigningCertificates = describe(all)
	return out, err
}

// describe returns what the service says about one or two certificates.
func describe(all []*x509.Certificate) *certificates {
	var out certificates
	for n, c := range all {
		described := &certificate{Info: &certificateInfo{
			SubjectName:      c.Subject.String(),
			SHA1Thumbprint:   fmt.Sprintf("%X", sha1.Sum(c.Raw)), //nolint:gosec // see the import
			SHA256Thumbprint: fmt.Sprintf("%X", sha256.Sum256(c.Raw)),
			IssuerName:       c.Issuer.String(),
			NotBefore:        timestamp(c.NotBefore),
			NotAfter:         timestamp(c.NotAfter),
			SerialNumber:     fmt.Sprintf("%X", c.SerialNumber),
			Version:          c.Version,
		}}
		if n == 0 {
			out.Primary = described
		} else {
			out.Secondary = described
		}
	}
	return &out
}

// merge applies a request to an enrollment, which is empty or the existing one.
func merge(i item, e enrollment, now string) (item, error) {
	a, g := i.parts()
	if i.individual != nil {
		i.individual.DeviceID = e.DeviceID
	}
	if err := mergeAttestation(i, a, e.Attestation); err != nil {
		return i, err
	}
	switch e.ProvisioningStatus {
	case "", "enabled", "disabled":
		g.Disabled = e.ProvisioningStatus == "disabled"
	default:
		return i, refuse(400000, "The provisioningStatus %q is neither enabled nor disabled.", e.ProvisioningStatus)
	}
	g.Reprovision = ""
	if p := e.ReprovisionPolicy; p != nil {
		switch {
		case !p.UpdateHubAssignment:
			g.Reprovision = "never"
		case !p.MigrateDeviceData:
			g.Reprovision = "reset"
		}
	}
	if g.Allocation = allocation[e.AllocationPolicy]; e.AllocationPolicy != "" && g.Allocation == "" {
		return i, refuse(400000, "The allocationPolicy %q is not one of hashed, geoLatency, static and custom.", e.AllocationPolicy)
	}
	if g.Allocation == "custom" && len(g.Custom) == 0 {
		return i, refuse(400000, "The simulator does not call a webhook. For the allocationPolicy custom, the enrollment needs a custom table in the enrollments file.")
	}
	if g.Allocation != "custom" {
		g.Custom = nil
	}
	if g.Hubs = e.IotHubs; len(g.Hubs) == 0 && e.IotHubHostName != "" {
		g.Hubs = []string{e.IotHubHostName}
	}
	var before properties
	if g.Properties != "" {
		if err := json.Unmarshal([]byte(g.Properties), &before); err != nil {
			return i, fmt.Errorf("properties: %w", err)
		}
	}
	kept := e.properties
	if kept.Created = before.Created; kept.Created == "" {
		kept.Created = now
	}
	kept.Updated = now
	text, err := enroll.JSON(kept)
	g.Properties = string(text)
	return i, err
}

// mergeAttestation sets keys or certificates. An attestation without them keeps those of the
// existing enrollment, because an answer to GET does not contain them; a new symmetric-key
// enrollment gets new keys.
func mergeAttestation(i item, a *enroll.Attestation, wanted *attestation) error {
	if wanted == nil {
		return refuse(400000, "The enrollment has no attestation.")
	}
	switch wanted.Type {
	case "symmetricKey":
		keys := symmetricKey{}
		if wanted.SymmetricKey != nil {
			keys = *wanted.SymmetricKey
		}
		primary, secondary, err := a.Keys()
		if err != nil {
			return err
		}
		if a.Type == "symmetric-key" && (keys.PrimaryKey == "" || keys.PrimaryKey == primary) && (keys.SecondaryKey == "" || keys.SecondaryKey == secondary) {
			return nil
		}
		*a = enroll.Attestation{Type: "symmetric-key", PrimaryKey: orNewKey(keys.PrimaryKey), SecondaryKey: orNewKey(keys.SecondaryKey)}
		if i.individual != nil {
			i.individual.Thumbprint, i.individual.Certificate = "", ""
		}
	case "x509":
		return mergeX509(i, a, wanted.X509)
	case "tpm":
		return refuse(400000, "The simulator does not support TPM attestation.")
	default:
		return refuse(400000, "The attestation type %q is not one of symmetricKey, x509 and tpm.", wanted.Type)
	}
	return nil
}

func orNewKey(text string) string {
	if text != "" {
		return text
	}
	var b [64]byte
	_, _ = rand.Read(b[:]) // it never fails
	return base64.StdEncoding.EncodeToString(b[:])
}

func mergeX509(i item, a *enroll.Attestation, wanted *x509Attestation) error {
	if wanted == nil {
		wanted = &x509Attestation{}
	}
	client, err := wanted.ClientCertificates.pem()
	if err != nil {
		return err
	}
	signing, err := wanted.SigningCertificates.pem()
	if err != nil {
		return err
	}
	switch {
	case len(wanted.CAReferences) > 0 && string(wanted.CAReferences) != "null":
		return refuse(400000, "The simulator has no list of CA certificates for caReferences; send signingCertificates.")
	case client != "" && signing != "":
		return refuse(400000, "The attestation has both clientCertificates and signingCertificates.")
	case client != "" && i.individual == nil:
		return refuse(400000, "An enrollment group requires signingCertificates.")
	case client == "" && signing == "":
		if a.Type != "x509" {
			return refuse(400000, "The x509 attestation has no certificate.")
		}
		return nil
	}
	*a = enroll.Attestation{Type: "x509", CA: signing}
	if i.individual != nil {
		i.individual.Thumbprint, i.individual.Certificate = "", client
	}
	return nil
}

// pem returns the certificates of a request as PEM, or "" for none.
func (c *certificates) pem() (string, error) {
	if c == nil {
		return "", nil
	}
	var out strings.Builder
	for _, one := range []*certificate{c.Primary, c.Secondary} {
		if one == nil || one.Certificate == "" {
			continue
		}
		text := []byte(one.Certificate)
		if !strings.Contains(one.Certificate, "-----BEGIN") {
			raw, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(one.Certificate), ""))
			if err != nil {
				return "", refuse(400000, "A certificate is neither PEM nor base64.")
			}
			if text = raw; !strings.Contains(string(raw), "-----BEGIN") {
				text = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw})
			}
		}
		all, err := enroll.Certificates(text)
		if err != nil {
			return "", refuse(400000, "A certificate is not valid: %v", err)
		}
		_ = pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: all[0].Raw}) // a Builder never fails
	}
	return out.String(), nil
}

func (h *Handler) get(k kind, r *http.Request) (*response, error) {
	found, ok := k.find(r.PathValue("id"))
	if !ok {
		return nil, k.notFound()
	}
	e, err := h.render(found, false)
	return &response{body: e}, err
}

// attestation returns the keys, too.
func (h *Handler) attestation(k kind, r *http.Request) (*response, error) {
	found, ok := k.find(r.PathValue("id"))
	if !ok {
		return nil, k.notFound()
	}
	e, err := h.render(found, true)
	return &response{body: e.Attestation}, err
}

func (h *Handler) put(k kind, r *http.Request, body []byte) (*response, error) {
	var e enrollment
	if err := decode(body, &e); err != nil {
		return nil, err
	}
	id := r.PathValue("id")
	if given := k.id(e); given != "" && !strings.EqualFold(given, id) {
		return nil, refuse(400000, "The ID in the body is %q, but the ID in the path is %q.", given, id)
	}
	h.changing.Lock()
	defer h.changing.Unlock()
	match := r.Header.Get("If-Match")
	return h.store(k, id, e, func(existing item, found bool) error {
		switch {
		case match == "" && found:
			return k.exists()
		case match != "" && !found:
			return k.notFound()
		case match != "" && !unchanged(r, existing.etag()):
			return refuse(412000, "The etag of the enrollment is %s.", existing.etag())
		}
		return nil
	})
}

// store creates or replaces an enrollment, if allowed returns nil for the existing one. The
// caller holds h.changing.
func (h *Handler) store(k kind, id string, e enrollment, allowed func(existing item, found bool) error) (*response, error) {
	if !enroll.IsRegistrationID(id) {
		return nil, refuse(400004, "%q is not a valid ID.", id)
	}
	existing, found := k.find(id)
	if err := allowed(existing, found); err != nil {
		return nil, err
	}
	if !found {
		existing = k.empty(id)
	}
	changed, err := merge(existing, e, timestamp(h.now()))
	if err != nil {
		return nil, err
	}
	if err := h.server.ChangeEnrollments(changed.change()); err != nil {
		return nil, err
	}
	stored, _ := k.find(id)
	answer, err := h.render(stored, true)
	return &response{body: answer}, err
}

func (h *Handler) remove(k kind, r *http.Request) (*response, error) {
	h.changing.Lock()
	defer h.changing.Unlock()
	id := r.PathValue("id")
	existing, found := k.find(id)
	switch {
	case !found:
		return nil, k.notFound()
	case r.Header.Get("If-Match") != "" && !unchanged(r, existing.etag()):
		return nil, refuse(412000, "The etag of the enrollment is %s.", existing.etag())
	}
	if err := h.server.ChangeEnrollments(k.removal(id)); err != nil {
		return nil, err
	}
	return &response{status: http.StatusNoContent}, nil
}

// query returns all enrollments of a kind, page by page. The service has no other query than
// for all of them.
func (h *Handler) query(k kind, r *http.Request, body []byte) (*response, error) {
	var specification struct {
		Query string `json:"query"`
	}
	if err := decode(body, &specification); err != nil {
		return nil, err
	}
	words := strings.Fields(strings.ToLower(specification.Query))
	if len(words) != 4 || !slices.Equal(words[:3], []string{"select", "*", "from"}) || !slices.Contains([]string{"enrollments", "enrollmentgroups"}, words[3]) {
		return nil, refuse(400000, "The query is %q; the service supports only SELECT * FROM enrollments and SELECT * FROM enrollmentGroups.", specification.Query)
	}
	list := []enrollment{}
	for _, i := range k.all() {
		e, err := h.render(i, false)
		if err != nil {
			return nil, err
		}
		list = append(list, e)
	}
	return page(r, list, k.id, k.itemType())
}

// bulkError is BulkEnrollmentOperationError.
type bulkError struct {
	RegistrationID    string `json:"registrationId,omitempty"`
	EnrollmentGroupID string `json:"enrollmentGroupId,omitempty"`
	ErrorCode         int    `json:"errorCode"`
	ErrorStatus       string `json:"errorStatus"`
}

// bulk performs one operation on several enrollments, one after the other.
func (h *Handler) bulk(k kind, body []byte) (*response, error) {
	var operation struct {
		Mode             string       `json:"mode"`
		Enrollments      []enrollment `json:"enrollments"`
		EnrollmentGroups []enrollment `json:"enrollmentGroups"`
	}
	if err := decode(body, &operation); err != nil {
		return nil, err
	}
	if !slices.Contains([]string{"create", "update", "updateIfMatchETag", "updateIfMatchEtag", "delete"}, operation.Mode) {
		return nil, refuse(400000, "The mode %q is not one of create, update, updateIfMatchETag and delete.", operation.Mode)
	}
	all := slices.Concat(operation.Enrollments, operation.EnrollmentGroups)
	if len(all) == 0 || len(all) > maxBulk {
		return nil, refuse(400000, "The operation has %d enrollments, not 1 to %d.", len(all), maxBulk)
	}
	h.changing.Lock()
	defer h.changing.Unlock()
	problems := []bulkError{}
	for _, e := range all {
		if err := h.one(k, operation.Mode, e); err != nil {
			f := asFailure(err)
			problems = append(problems, bulkError{e.RegistrationID, e.EnrollmentGroupID, f.code, f.message})
		}
	}
	return &response{body: struct {
		IsSuccessful bool        `json:"isSuccessful"`
		Errors       []bulkError `json:"errors"`
	}{len(problems) == 0, problems}}, nil
}

// one performs a bulk operation on one enrollment. The caller holds h.changing.
func (h *Handler) one(k kind, mode string, e enrollment) error {
	id := k.id(e)
	existing, found := k.find(id)
	if mode == "delete" {
		if !found {
			return k.notFound()
		}
		return h.server.ChangeEnrollments(k.removal(id))
	}
	_, err := h.store(k, id, e, func(item, bool) error {
		switch {
		case mode == "create" && found:
			return k.exists()
		case mode != "create" && !found:
			return k.notFound()
		case strings.EqualFold(mode, "updateIfMatchETag") && e.ETag != existing.etag():
			return refuse(412000, "The etag of the enrollment is %s.", existing.etag())
		}
		return nil
	})
	return err
}
