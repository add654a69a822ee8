package check

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/dpsd-project/dpsd/classify"
	"github.com/dpsd-project/dpsd/daemon"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/hub"
	"github.com/dpsd-project/dpsd/store"
	"github.com/dpsd-project/dpsd/transport"
)

// hubPorts are the ports on which a hub accepts MQTT and MQTT over WebSocket.
var hubPorts = []int{transport.DefaultMQTTPort, transport.DefaultWebSocketPort}

// maxHeader is the maximum size of a hub's answer, in bytes.
const maxHeader = 64 << 10

// dateLimit is the time limit for an answer with the time of a hub.
const dateLimit = 5 * time.Second

// hub connects to the assigned hub with TLS. It presents no client certificate and does not
// sign in, because a hub allows a device only one connection, and a second one would end the
// connection of the running client.
func (i *inspection) hub(ctx context.Context) {
	host, because := i.assignedHub()
	if because == "" && i.dialer == nil {
		because = "the roots cannot be read"
	}
	if because != "" || i.leavesOut(HubName, HubTCP, HubTLS, HubDevice) {
		i.skipAll(because, HubName, HubTCP, HubTLS)
		return
	}
	defer i.hubDevice(ctx)
	h := *i
	ways, dialers := make([]*way, len(hubPorts)), make([]*transport.Dialer, len(hubPorts))
	var direct []*way
	var results []Result
	for n, port := range hubPorts {
		dialer := *i.dialer
		dialer.Host, dialer.MQTTPort, dialer.Sessions = host, port, nil
		dialer.Protocols = []transport.Protocol{transport.MQTT} // TLS without MQTT
		w := &way{protocol: transport.MQTT}
		ways[n], dialers[n], h.dialer = w, &dialer, &dialer
		var err error
		switch w.route, err = dialer.Route(transport.MQTT); {
		case err != nil:
			w.hubFailed(HubTCP, classify.Classify(err))
		case w.route.Proxy == "":
			direct = append(direct, w)
		case len(results) == 0:
			results = append(results, Result{Name: HubName, Subject: host}.skipped("the proxy "+w.route.Proxy+" resolves it"))
		}
	}
	for _, r := range h.hops(ctx, direct, HubName, HubTCP) {
		if r.Code != "" {
			r.Advice = fault.Describe(r.Code).AdviceWhen(fault.AtHub)
		}
		results = append(results, r)
	}
	var clocks []Result
	for n, w := range ways {
		if ctx.Err() != nil {
			return
		}
		h.dialer = dialers[n]
		if date := h.greet(ctx, w); !date.IsZero() {
			clocks = append(clocks, compare("the hub", date, i.Now()))
		}
	}
	worked := slices.ContainsFunc(ways, func(w *way) bool { return w.worked })
	for _, w := range ways {
		results = append(results, w.results...)
	}
	if worked {
		soften(results, "the hub can be reached on another port")
	}
	i.report(append(results, clocks...)...)
}

// hubDevice checks over HTTPS whether the hub accepts the device, if the configuration allows
// this. It is off by default because the request probably counts towards a quota that all devices
// of the hub share.
func (i *inspection) hubDevice(ctx context.Context) {
	if !i.Settings.HubCheck || ctx.Err() != nil || i.leavesOut(HubDevice) {
		return
	}
	rec, err := store.Published(i.StateDirectory, i.RuntimeDirectory)
	if err != nil {
		return // the step that reads the record reports this
	}
	r := Result{Name: HubDevice, Subject: rec.AssignedHub}
	if hub.Named(rec.ConnectionProfile) != hub.Classic {
		i.report(r.skipped(fmt.Sprintf("the hub has the connection profile %q", rec.ConnectionProfile)))
		return
	}
	i.Progress("requesting the modules of the device from " + rec.AssignedHub)
	settings := *i.Settings
	settings.Dialer = i.dialer
	state := store.Options{Directory: i.StateDirectory, RuntimeDirectory: i.RuntimeDirectory}
	err = daemon.AskHub(ctx, &settings, i.Secrets, state, rec, &i.disclosed)
	if err == nil {
		i.report(r.ok("the hub accepts " + rec.DeviceID))
		return
	}
	r = failed(r, classify.Classify(classify.At(fault.StageHub, err)))
	if r.Code != fault.HubRefused {
		r.Status = Warning // this says nothing about the device
	}
	i.report(r)
}

// assignedHub returns the hub of the published record, or the reason why the hub is not
// checked.
func (i *inspection) assignedHub() (host, because string) {
	record, err := store.Published(i.StateDirectory, i.RuntimeDirectory)
	_, azure := classify.CloudOf(record.AssignedHub)
	switch {
	case errors.Is(err, store.ErrNoRecord):
		return "", "no hub is assigned yet"
	case err != nil:
		return "", "the record cannot be read"
	case !classify.Azure(record.Endpoint) && azure && !classify.Azure(record.AssignedHub):
		return "", fmt.Sprintf("%s is not an Azure endpoint, and a simulator's hub, such as %s, need not exist", record.Endpoint, record.AssignedHub)
	}
	return record.AssignedHub, ""
}

func (w *way) hubFailed(name string, f fault.Fault) {
	if f.Circumstance == "" || f.Circumstance == fault.OnlyMQTT { // the port of the hub is not configurable
		f.Circumstance = fault.AtHub
	}
	w.results = append(w.results, failed(Result{Name: name, Subject: w.route.Address}, f))
	w.blocked = name + " failed"
}

// greet makes a TLS handshake with the hub and, on port 443, requests its time (RFC 9110
// §6.6.1). The time is zero if the hub does not send it.
func (i *inspection) greet(ctx context.Context, w *way) (date time.Time) {
	r := Result{Name: HubTLS, Subject: w.route.Address}
	switch {
	case w.blocked != "":
		w.results = append(w.results, r.skipped(w.blocked))
		return date
	case i.leavesOut(HubTLS):
		w.results, w.worked = append(w.results, r), true
		return date
	}
	i.Progress("TLS handshake with " + w.route.Address)
	conn, err := i.dialer.Dial(ctx, nil)
	if err != nil {
		f, name := classify.Classify(err), HubTLS
		if where, is := errors.AsType[*transport.Error](err); is {
			f.Err = where.Err
			switch where.Stage {
			case transport.StageName:
				name = HubName
			case transport.StageTCP, transport.StageProxy:
				name = HubTCP
			}
		}
		w.hubFailed(name, f)
		return date
	}
	defer func() { _ = conn.Close() }()
	if conn.Proxy != "" {
		w.results = append(w.results, Result{Name: HubTCP, Subject: conn.Address}.ok("reached through the proxy "+conn.Proxy+i.proxyOrigin()))
	}
	w.results, w.worked = append(w.results, r.ok(agreed(conn))), true
	if i.dialer.MQTTPort != transport.DefaultWebSocketPort || i.leavesOut(Clock) {
		return date
	}
	_ = conn.SetDeadline(time.Now().Add(dateLimit))
	request := &http.Request{Method: http.MethodHead, URL: &url.URL{Path: "/"}, Host: i.dialer.Host, Header: http.Header{"User-Agent": {"dpsd"}}, Close: true}
	if request.Write(conn) != nil {
		return date
	}
	answer, err := http.ReadResponse(bufio.NewReader(io.LimitReader(conn, maxHeader)), request)
	if err != nil {
		return date
	}
	_ = answer.Body.Close()
	date, _ = http.ParseTime(answer.Header.Get("Date"))
	return date
}
