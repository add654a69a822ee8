package hub_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dpsd-project/dpsd/hub"
)

func TestTheErrorOfAHubIsReadInBothForms(t *testing.T) {
	const id = "5e2b3b0e1e0a4f5c8e4f0d7a6b9c1d2e"
	for _, tt := range []struct {
		name, retryAfter, body string
		status                 int
		want                   hub.Error
	}{
		{name: "the newer form", status: 404,
			body: `{"errorCode":404001,"trackingId":"` + id + `","message":"Device not found","timestampUtc":"2026-11-30T07:00:00Z"}`,
			want: hub.Error{Status: 404, Code: 404001, Message: "Device not found", TrackingID: id}},
		{name: "the older form", status: 401,
			body: `{"Message":"ErrorCode:IotHubUnauthorizedAccess;Unauthorized","ExceptionMessage":"Tracking ID:` + id + `-G:10-TimeStamp:11/30/2026 07:00:00"}`,
			want: hub.Error{Status: 401, Message: "ErrorCode:IotHubUnauthorizedAccess;Unauthorized", TrackingID: id + "-G:10"}},
		{name: "a document within the message", status: 429, retryAfter: "17",
			body: `{"Message":"{\"errorCode\":429001,\"trackingId\":\"` + id + `\",\"message\":\"Throttled\"}","ExceptionMessage":""}`,
			want: hub.Error{Status: 429, Code: 429001, Message: "Throttled", TrackingID: id, RetryAfter: 17 * time.Second}},
		{name: "errorMessage of a parent gateway", status: 500, body: `{"errorMessage":"network error"}`, want: hub.Error{Status: 500, Message: "network error"}},
		{name: "a code in the message", status: 403, body: `{"message":"403012 Device disabled"}`, want: hub.Error{Status: 403, Code: 403012, Message: "403012 Device disabled"}},
		{name: "a code of another status is no code", status: 503, body: `{"errorCode":404001}`, want: hub.Error{Status: 503}},
		{name: "a page", status: 502, retryAfter: "Mon, 30 Nov 2026 07:00:00 GMT", body: "<html>", want: hub.Error{Status: 502}},
		{name: "an endless wait", status: 503, retryAfter: "2000000000", want: hub.Error{Status: 503, RetryAfter: 24 * time.Hour}},
		{name: "an empty body", status: 404, want: hub.Error{Status: 404}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if d := cmp.Diff(&tt.want, hub.ParseError(tt.status, tt.retryAfter, []byte(tt.body))); d != "" {
				t.Error(d)
			}
		})
	}
	long := hub.ParseError(400, "", []byte(`{"message":"`+strings.Repeat("x", 4000)+`\u202e"}`))
	if text := long.Error(); len(text) > 600 || strings.ContainsRune(text, '\u202e') {
		t.Errorf("the message is neither bounded nor cleaned: %d bytes", len(text))
	}
}
