package scenario

import (
	"cmp"
	"crypto/tls"
	"encoding/hex"
	"io"
	"maps"
	"path"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/dpsd-project/dpsd/simulator/tomlfile"
)

// Parse reads a scenario from TOML. The name is used in errors, which are of type
// *tomlfile.Error, joined when there are several.
func Parse(name string, r io.Reader) (*Scenario, error) {
	text, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	var file struct {
		Settings struct {
			Settings
			ReplyDelay tomlfile.Duration `toml:"reply_delay"`
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
	if err := tomlfile.Decode(name, text, &file); err != nil {
		return nil, err
	}
	sc := &Scenario{Settings: file.Settings.Settings}
	sc.Settings.ReplyDelay = time.Duration(file.Settings.ReplyDelay)
	for _, r := range file.Rules {
		r.Rule.Delay, r.Rule.Pace = time.Duration(r.Delay), time.Duration(r.Pace)
		r.Rule.From, r.Rule.Until = time.Duration(r.From), time.Duration(r.Until)
		r.Rule.Refuse = time.Duration(r.Refuse)
		r.Rule.DelayUp, r.Rule.DelayDown = time.Duration(r.DelayUp), time.Duration(r.DelayDown)
		sc.Rules = append(sc.Rules, r.Rule)
	}
	return sc, sc.problems().Locate(name, text)
}

// Validate returns what is wrong with a scenario made in Go, errors as those of Parse. A
// parsed one is valid.
func (sc *Scenario) Validate() error { return sc.problems().Error("scenario") }

func (sc *Scenario) problems() tomlfile.Problems {
	var all tomlfile.Problems
	sc.Settings.check(all.In("settings", tomlfile.Single))
	for i := range sc.Rules {
		sc.Rules[i].check(all.In("rule", i))
	}
	all.Sort()
	return all
}

// reporter reports what is wrong with a key.
type reporter func(key, format string, args ...any)

// tlsVersion reports a text that is no version.
func (bad reporter) tlsVersion(key, value string) {
	bad.oneOf(key, value, slices.Sorted(maps.Keys(tlsVersions))...)
}

// oneOf reports a text that is neither empty nor one of these.
func (bad reporter) oneOf(key, value string, of ...string) {
	if value != "" && !slices.Contains(of, value) {
		bad(key, "%q is none of %s", value, strings.Join(of, ", "))
	}
}

var tlsVersions = map[string]uint16{"1.0": tls.VersionTLS10, "1.1": tls.VersionTLS11, "1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}

func (s *Settings) check(bad reporter) {
	if s.Polls != nil && *s.Polls < 0 {
		bad("polls", "%d is negative", *s.Polls)
	}
	if s.ReplyDelay < 0 {
		bad("reply_delay", "%v is negative", s.ReplyDelay)
	}
	bad.oneOf("refuse", s.Refuse, "late", "early")
	bad.tlsVersion("tls_min", s.TLSMin)
	bad.tlsVersion("tls_max", s.TLSMax)
	if TLSVersion(s.TLSMin) > TLSVersion(s.TLSMax) {
		bad("tls_min", "is above tls_max")
	}
	for _, v := range s.APIVersions {
		if !IsAPIVersion(v) {
			bad("api_versions", "%q is not of the form YYYY-MM-DD[-preview]", v)
		}
	}
	bad.oneOf("unknown_api_version", s.UnknownAPIVersion, "serve", "refuse")
	for version, all := range s.Features {
		if !IsAPIVersion(version) {
			bad("features", "%q is not of the form YYYY-MM-DD[-preview]", version)
		}
		for _, f := range all {
			if f != FeatureCSR && f != FeatureProfile {
				bad("features", "%q is none of %s, %s", f, FeatureCSR, FeatureProfile)
			}
		}
	}
	if s.PollLimit != nil && *s.PollLimit < 0 {
		bad("poll_limit", "%d is negative", *s.PollLimit)
	}
	if s.RegisterLimit < 0 {
		bad("register_limit", "%d is negative", s.RegisterLimit)
	}
}

func (r *Rule) check(bad reporter) {
	if !slices.Contains(stages, r.On) {
		names := make([]string, len(stages))
		for i, s := range stages {
			names[i] = string(s)
		}
		bad("on", "%q is none of %s", r.On, strings.Join(names, ", "))
		return
	}
	for key, where := range r.keys() {
		if where != "" && !slices.Contains(strings.Fields(where), string(r.On)) {
			bad(key, "has no meaning on %q, only on: %s", r.On, where)
		}
	}
	if _, err := path.Match(r.RegistrationID, ""); err != nil {
		bad("registration_id", "%q is not a pattern", r.RegistrationID)
	}
	bad.oneOf("protocol", r.Protocol, "mqtt", "websocket")
	bad.oneOf("then", r.Then, "close", "reset", "silent")
	bad.oneOf("server_certificate", r.ServerCertificate, "expired", "not-yet-valid", "wrong-host", "other-ca")
	bad.tlsVersion("tls_min", r.TLSMin)
	bad.tlsVersion("tls_max", r.TLSMax)
	bad.oneOf("state", r.State, "assigning", "assigned", "failed", "disabled", "unassigned")
	bad.oneOf("alert", r.Alert, slices.Sorted(maps.Keys(Alerts))...)
	bad.oneOf("alert_at", r.AlertAt, "hello", "certificate")
	bad.oneOf("frames", r.Frames, Frames...)
	for key, v := range map[string]int{
		"skip": r.Skip, "times": r.Times, "cut": r.Cut, "replies": r.Replies, "status": r.Status,
		"after_up": r.AfterUp, "after_down": r.AfterDown, "pad": r.Pad, "close_code": r.CloseCode,
		"delay": int(r.Delay), "from": int(r.From), "until": int(r.Until), "refuse": int(r.Refuse),
		"delay_up": int(r.DelayUp), "delay_down": int(r.DelayDown), "pace": int(r.Pace),
	} {
		if v < 0 {
			bad(key, "is negative")
		}
	}
	for key, v := range map[string]*int{"connack": r.Connack, "suback": r.Suback} {
		if v != nil && (*v < 0 || *v > 255) {
			bad(key, "%d is not a byte", *v)
		}
	}
	if r.Chance < 0 || r.Chance > 1 {
		bad("chance", "%v is not between 0 and 1", r.Chance)
	}
	if r.Until > 0 && r.Until <= r.From {
		bad("until", "is not after from")
	}
	if r.Pad > maxPad {
		bad("pad", "is above %d, which no packet can hold", maxPad)
	}
	if r.CloseCode > 4999 || r.CloseCode > 0 && r.CloseCode < 1000 {
		bad("close_code", "%d is no status of a close frame", r.CloseCode)
	}
	if _, err := hex.DecodeString(strings.ReplaceAll(r.GarbageHex, " ", "")); err != nil {
		bad("garbage_hex", "%v", err)
	}
	if r.Garbage != "" && r.GarbageHex != "" {
		bad("garbage_hex", "there is garbage already")
	}
	garbage := r.Garbage != "" || r.GarbageHex != ""
	if (r.AfterUp > 0 || r.AfterDown > 0) && !r.Close && !r.Reset && !r.Silent && !garbage {
		bad("on", "after_up and after_down need one of close, reset, silent and garbage")
	}
	instead := 0
	for _, b := range []bool{r.Close, r.Reset, r.Silent && !garbage, garbage, r.Refuse > 0} {
		if b {
			instead++
		}
	}
	if instead > 1 {
		bad("on", "only one of close, reset, silent, garbage and refuse can happen")
	}
}

// keys gives the TOML keys that are set, each with the stages it belongs to.
func (r *Rule) keys() map[string]string {
	set := map[string]string{}
	v := reflect.ValueOf(*r)
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if v.Field(i).IsZero() {
			continue
		}
		key := f.Tag.Get("toml")
		if key == "-" {
			key = f.Tag.Get("key")
		}
		set[key] = f.Tag.Get("on")
	}
	return set
}

// TLSVersion reads a version; the empty text is the service's own.
func TLSVersion(text string) uint16 { return tlsVersions[cmp.Or(text, "1.2")] }

// IsAPIVersion checks the form YYYY-MM-DD[-preview].
func IsAPIVersion(s string) bool {
	day := strings.TrimSuffix(s, "-preview")
	_, err := time.Parse(time.DateOnly, day)
	return err == nil
}
