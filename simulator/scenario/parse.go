package scenario

import (
	"cmp"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/dpsd-project/dpsd/simulator/tomlfile"
)

// Parse reads a scenario from TOML. The name appears in errors, which are one or more of type
// *tomlfile.Error, joined.
func Parse(name string, r io.Reader) (*Scenario, error) { return Settings{}.Parse(name, r) }

// Parse reads a scenario like the function Parse. It takes the settings that the text does not
// contain from s.
func (s Settings) Parse(name string, r io.Reader) (*Scenario, error) {
	text, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	var file struct {
		Settings struct {
			Settings
			ReplyDelay       tomlfile.Duration `toml:"reply_delay"`
			CertificateLife  tomlfile.Duration `toml:"certificate_life"`
			CertificateDelay tomlfile.Duration `toml:"certificate_delay"`
		} `toml:"settings"`
		Rules []struct {
			Rule
			Delay     tomlfile.Duration `toml:"delay"`
			From      tomlfile.Duration `toml:"from"`
			Until     tomlfile.Duration `toml:"until"`
			Refuse    tomlfile.Duration `toml:"refuse"`
			DelayUp   tomlfile.Duration `toml:"delay_up"`
			DelayDown tomlfile.Duration `toml:"delay_down"`
			Pace      tomlfile.Duration `toml:"pace"`
		} `toml:"rule"`
	}
	file.Settings.Settings = s.clone()
	file.Settings.ReplyDelay = tomlfile.Duration(s.ReplyDelay)
	file.Settings.CertificateLife, file.Settings.CertificateDelay = tomlfile.Duration(s.CertificateLife), tomlfile.Duration(s.CertificateDelay)
	if err := tomlfile.Decode(name, text, &file); err != nil {
		return nil, err
	}
	sc := &Scenario{Settings: file.Settings.Settings}
	sc.Settings.ReplyDelay = time.Duration(file.Settings.ReplyDelay)
	sc.Settings.CertificateLife, sc.Settings.CertificateDelay = time.Duration(file.Settings.CertificateLife), time.Duration(file.Settings.CertificateDelay)
	for _, r := range file.Rules {
		r.Rule.Delay, r.Rule.Pace = time.Duration(r.Delay), time.Duration(r.Pace)
		r.Rule.From, r.Rule.Until = time.Duration(r.From), time.Duration(r.Until)
		r.Rule.Refuse = time.Duration(r.Refuse)
		r.Rule.DelayUp, r.Rule.DelayDown = time.Duration(r.DelayUp), time.Duration(r.DelayDown)
		sc.Rules = append(sc.Rules, r.Rule)
	}
	return sc, sc.check(name, text)
}

// clone returns settings of which the decoder can write to everything.
func (s Settings) clone() Settings {
	for _, n := range []**int{&s.Polls, &s.PollLimit} {
		if *n != nil {
			*n = new(**n)
		}
	}
	s.Features = maps.Clone(s.Features)
	s.APIVersions, s.CSRKeys = slices.Clone(s.APIVersions), slices.Clone(s.CSRKeys)
	return s
}

// Validate checks a scenario that was made in Go. Its errors are like those of Parse. Every
// parsed scenario is valid.
func (sc *Scenario) Validate() error { return sc.check("scenario", nil) }

func (sc *Scenario) check(name string, text []byte) error {
	var all tomlfile.Problems
	sc.Settings.check(all.In("settings", tomlfile.Single))
	for i := range sc.Rules {
		sc.Rules[i].check(all.In("rule", i))
	}
	return all.Error(name, text)
}

// checkFields checks what the tags of a struct's fields require: "on" names the stages at
// which a field applies, and "of" lists its values, or is "byte" or "integer". Only an
// "integer" may be negative.
func checkFields(fields any, on Stage, bad tomlfile.Reporter) {
	v := reflect.ValueOf(fields)
	for i := range v.NumField() {
		f, tag := v.Field(i), v.Type().Field(i).Tag
		if f.IsZero() {
			continue
		}
		key := cmp.Or(tag.Get("key"), tag.Get("toml"))
		if where := tag.Get("on"); where != "" && !slices.Contains(strings.Fields(where), string(on)) {
			bad(key, "does not apply to %q, only to: %s", on, where)
		}
		n := reflect.Indirect(f)
		switch of := tag.Get("of"); {
		case of == "integer":
		case of == "byte" && (n.Int() < 0 || n.Int() > 255):
			bad(key, "%d is not a byte", n.Int())
		case of != "" && of != "byte":
			bad.OneOf(key, f.String(), strings.Fields(of)...)
		case n.CanInt() && n.Int() < 0:
			bad(key, "%v is negative", n)
		}
	}
}

var tlsVersions = map[string]uint16{"1.0": tls.VersionTLS10, "1.1": tls.VersionTLS11, "1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}

func (s *Settings) check(bad tomlfile.Reporter) {
	checkFields(*s, "", bad)
	if TLSVersion(s.TLSMin) > TLSVersion(s.TLSMax) {
		bad("tls_min", "is above tls_max")
	}
	for _, v := range s.APIVersions {
		checkAPIVersion("api_versions", v, bad)
	}
	for _, k := range s.CSRKeys {
		if !slices.Contains(keyTypes, k) {
			bad("csr_keys", "%q is not one of %s", k, strings.Join(keyTypes, ", "))
		}
	}
	for _, version := range slices.Sorted(maps.Keys(s.Features)) {
		checkAPIVersion("features", version, bad)
		for _, f := range s.Features[version] {
			if f != FeatureCSR && f != FeatureProfile {
				bad("features", "%q is neither %s nor %s", f, FeatureCSR, FeatureProfile)
			}
		}
	}
}

func checkAPIVersion(key, version string, bad tomlfile.Reporter) {
	if !IsAPIVersion(version) {
		bad(key, "%q is not of the form YYYY-MM-DD[-preview]", version)
	}
}

func (r *Rule) check(bad tomlfile.Reporter) {
	if !slices.Contains(stages, r.On) {
		bad("on", "%q is not one of %s", r.On, strings.ReplaceAll(strings.Trim(fmt.Sprint(stages), "[]"), " ", ", "))
		return
	}
	checkFields(*r, r.On, bad)
	bad.Pattern("registration_id", r.RegistrationID)
	bad.Pattern("hub", r.Hub)
	bad.Pattern("device", r.Device)
	bad.OneOf("alert", r.Alert, slices.Sorted(maps.Keys(Alerts))...)
	bad.OneOf("frames", r.Frames, Frames...)
	bad.OneOf("chain", r.Chain, Chains...)
	if r.Protocol == "https" && r.On != OnRegister && r.On != OnPoll && r.On != OnHubRequest {
		bad("protocol", "https applies only to: %s %s %s", OnRegister, OnPoll, OnHubRequest)
	}
	if r.Chance < 0 || r.Chance > 1 {
		bad("chance", "%v is not between 0 and 1", r.Chance)
	}
	if r.Until > 0 && r.Until <= r.From {
		bad("until", "is not after from")
	}
	if r.Pad > maxPad {
		bad("pad", "is above %d, the largest body that fits in a packet", maxPad)
	}
	if r.CloseCode > 4999 || r.CloseCode > 0 && r.CloseCode < 1000 {
		bad("close_code", "%d is not a valid status of a close frame", r.CloseCode)
	}
	if _, err := hex.DecodeString(strings.ReplaceAll(r.GarbageHex, " ", "")); err != nil {
		bad("garbage_hex", "%v", err)
	}
	if r.Garbage != "" && r.GarbageHex != "" {
		bad("garbage_hex", "cannot be combined with garbage")
	}
	garbage := r.Garbage != "" || r.GarbageHex != ""
	if (r.AfterUp > 0 || r.AfterDown > 0) && !r.Close && !r.Reset && !r.Silent && !garbage {
		bad("on", "after_up and after_down require one of close, reset, silent and garbage")
	}
	instead := 0
	for _, b := range []bool{r.Close, r.Reset, r.Silent && !garbage, garbage, r.Refuse > 0} {
		if b {
			instead++
		}
	}
	if instead > 1 {
		bad("on", "only one of close, reset, silent, garbage and refuse can be set")
	}
}

// TLSVersion parses a version. The empty text means the service's default.
func TLSVersion(text string) uint16 { return tlsVersions[cmp.Or(text, "1.2")] }

// IsAPIVersion checks the format YYYY-MM-DD[-preview].
func IsAPIVersion(s string) bool {
	day := strings.TrimSuffix(s, "-preview")
	_, err := time.Parse(time.DateOnly, day)
	return err == nil
}
