package event

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/foreign"
)

// valueLimit limits a value in a MESSAGE, in bytes, so that the advice fits after the
// cause. The journal field contains the whole value.
const valueLimit = foreign.MaxText

// repeats is added to the sentence of an entry that summarizes repetitions.
const repeats = "[ ({repeated} more since {since})]"

// Message formats an event and its fields as one line of text.
func Message(name string, fields map[string]any) string {
	e, known := Describe(name)
	if !known {
		var b strings.Builder
		b.WriteString(name)
		for _, key := range slices.Sorted(maps.Keys(fields)) {
			fmt.Fprintf(&b, " %s=%s", key, words(key, fields[key]))
		}
		return b.String()
	}
	if class, is := fields["class"].(string); is && class != string(fault.Credential) {
		fields = maps.Clone(fields)
		delete(fields, "credential") // it was in use, but did not cause the fault
	}
	sentence := e.Sentence
	if name != LogLost { // its sentence contains since
		sentence += repeats
	}
	return fill(sentence, fields)
}

// fill inserts values into a sentence.
func fill(sentence string, fields map[string]any) string {
	var b strings.Builder
	for sentence != "" {
		before, rest, found := strings.Cut(sentence, "[")
		text, _ := replace(before, fields)
		b.WriteString(text)
		if !found {
			break
		}
		var optional string
		optional, sentence, _ = strings.Cut(rest, "]")
		if text, complete := replace(optional, fields); complete {
			b.WriteString(text)
		}
	}
	return b.String()
}

// replace replaces each {field} and reports whether none was empty.
func replace(text string, fields map[string]any) (string, bool) {
	var b strings.Builder
	complete := true
	for {
		before, rest, found := strings.Cut(text, "{")
		b.WriteString(before)
		if !found {
			return b.String(), complete
		}
		var key string
		key, text, _ = strings.Cut(rest, "}")
		if Empty(fields[key]) {
			complete = false
		}
		b.WriteString(words(key, fields[key]))
	}
}

// Empty reports whether a field has no value: it is missing, zero or "". A bool always has
// a value.
func Empty(value any) bool {
	if _, is := value.(bool); is {
		return false // false is a value
	}
	return value == nil || reflect.ValueOf(value).IsZero()
}

// words returns the text of a value for people.
func words(key string, value any) string {
	switch v := value.(type) {
	case nil:
		return "-"
	case time.Duration:
		unit := time.Millisecond
		if v >= time.Second || v <= -time.Second {
			unit = time.Second
		}
		return v.Round(unit).String()
	case time.Time:
		return v.UTC().Format("2006-01-02 15:04:05 UTC")
	case bool:
		switch {
		case key == "changed" && v:
			return "changes applied"
		case key == "changed":
			return "no changes"
		case v:
			return "yes"
		}
		return "no"
	}
	text := fmt.Sprint(value)
	if key == "stage" {
		text = fault.Stage(text).Doing()
	}
	return foreign.Line(strings.Join(strings.Fields(text), " "), valueLimit)
}
