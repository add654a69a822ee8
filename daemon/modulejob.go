package daemon

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"slices"

	"github.com/dpsd-project/dpsd/classify"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/hub"
	"github.com/dpsd-project/dpsd/modules"
	"github.com/dpsd-project/dpsd/redact"
	"github.com/dpsd-project/dpsd/store"
	"github.com/dpsd-project/dpsd/transport"
)

// moduleJob creates, updates and removes module identities at the hub according to the configuration. A
// registration that becomes due interrupts it.
type moduleJob struct {
	reporter
	hubAccess
	store  *store.Store
	goal   moduleGoal
	verify bool // contact the hub even if modules.json contains the wanted modules
}

type modulesOutcome struct {
	device           hub.Identity
	stored           store.Modules // modules.json
	unread           bool          // modules.json could not be read
	unsaved          bool          // modules.json does not contain stored
	created, removed []string
	refused          []*modules.RefusedError // modules that dpsd cannot create or remove
	err              error                   // a *classify.StageError; with refused, the first of them
	interrupted      bool
	credential       string
	secrets          redact.Known // sent to the hub
}

func (j *moduleJob) run(ctx context.Context) outcome {
	o := modulesOutcome{device: j.goal.device, credential: j.credential.String()}
	err := j.reconcile(ctx, &o)
	if err == nil && len(o.refused) > 0 {
		err = o.refused[0]
	}
	o.err, o.interrupted = classify.At(fault.StageHub, err), err != nil && ctx.Err() != nil
	return o
}

// reconcile makes as many of the necessary changes as it can, and records them in o.
func (j *moduleJob) reconcile(ctx context.Context, o *modulesOutcome) error {
	j.enter(ctx, fault.StageHub, saveLimit, "")
	var err error
	if o.stored, err = j.store.Modules(j.now()); err != nil {
		o.unread = true
		return err
	}
	if !necessary(j.goal, o.stored, j.verify) { // the job only had to read modules.json
		return nil
	}
	if profile := j.record.ConnectionProfile; hub.Named(profile) != hub.Classic {
		return &modules.ProfileError{Profile: profile}
	}
	j.enter(ctx, fault.StageHub, hardwareLimit, "")
	client, closing, err := j.client(ctx, j.now, &o.secrets)
	if err != nil {
		return err
	}
	defer closing()
	j.request(ctx, client)
	listed, err := client.List(ctx)
	if err != nil {
		return err
	}
	if len(o.stored.Root) == 0 {
		o.stored.Root = make([]byte, store.RootSize)
		_, _ = rand.Read(o.stored.Root) // never returns an error
	}
	keys := modules.Keys{Root: o.stored.Root, Device: o.device}
	all, _ := recorded(o.stored, o.device)
	plan := modules.NewPlan(j.goal.wanted, all, listed, keys)
	o.refused = plan.Refuse
	return j.carryOut(ctx, client, plan, keys, o)
}

// carryOut makes the changes of a plan. It records a module in modules.json before creating it, so
// that dpsd can remove the module even if the response of the hub is lost.
func (j *moduleJob) carryOut(ctx context.Context, client *modules.Client, plan modules.Plan, keys modules.Keys, o *modulesOutcome) (err error) {
	o.stored.Identities = begun(plan, o.device)
	if err := j.save(ctx, o); err != nil {
		return err
	}
	change := func(id string, request func() error) (changed bool, err error) {
		j.request(ctx, client)
		keys := keys.Pair(id)
		o.secrets.Add([]byte(keys.Primary))
		o.secrets.Add([]byte(keys.Secondary))
		err = request()
		if refused := (*modules.RefusedError)(nil); errors.As(err, &refused) && classify.Classify(err).Code == fault.ModuleRefused {
			o.refused = append(o.refused, refused)
			return false, nil
		}
		return err == nil, err
	}
	defer func() {
		if saved := j.save(ctx, o); err == nil {
			err = saved
		}
	}()
	for _, m := range plan.Delete { // before the others: a hub limits the number of modules
		changed, err := change(m.ID, func() error { return client.Delete(ctx, m) })
		if err != nil {
			return err
		}
		if changed {
			o.removed = append(o.removed, m.ID)
			o.stored.Identities = slices.DeleteFunc(o.stored.Identities, o.is(m.ID))
		}
	}
	updates := plan.Update
	for _, id := range plan.Create {
		updates = append(updates, modules.Module{ID: id})
	}
	for _, m := range updates {
		changed, err := change(m.ID, func() error {
			if slices.Contains(plan.Create, m.ID) {
				return client.Create(ctx, m.ID, keys.Pair(m.ID))
			}
			return client.Update(ctx, m, keys.Pair(m.ID))
		})
		if err != nil {
			return err
		}
		if changed {
			o.created = append(o.created, m.ID)
			o.stored.Identities[slices.IndexFunc(o.stored.Identities, o.is(m.ID))].Created = true
		}
	}
	return nil
}

// is returns a function that recognizes a module of the device.
func (o *modulesOutcome) is(id string) func(store.ModuleIdentity) bool {
	return func(i store.ModuleIdentity) bool {
		return i.AssignedHub == o.device.Host && i.DeviceID == o.device.DeviceID && i.ModuleID == id
	}
}

// begun returns the identities to record before the first change of a plan. It omits those of another
// assignment, because the device no longer belongs to that hub.
func begun(plan modules.Plan, device hub.Identity) []store.ModuleIdentity {
	var all []store.ModuleIdentity
	add := func(id string, created bool) {
		all = append(all, store.ModuleIdentity{AssignedHub: device.Host, DeviceID: device.DeviceID, ModuleID: id, Created: created})
	}
	for _, id := range plan.Keep {
		add(id, true)
	}
	for _, id := range plan.Create {
		add(id, false)
	}
	for _, m := range plan.Update {
		add(m.ID, false)
	}
	for _, m := range plan.Delete {
		// The hub may have confirmed the module, but no service uses it any more.
		add(m.ID, false)
	}
	slices.SortFunc(all, func(a, b store.ModuleIdentity) int { return cmp.Compare(a.ModuleID, b.ModuleID) })
	return all
}

// save writes modules.json, even if the job was interrupted.
func (j *moduleJob) save(ctx context.Context, o *modulesOutcome) error {
	j.enter(ctx, fault.StageHub, saveLimit, "")
	err := j.store.SaveModules(o.stored)
	o.unsaved = err != nil
	return err
}

// request reports the start of a request.
func (j *moduleJob) request(ctx context.Context, client *modules.Client) {
	limit := 2 * cmp.Or(client.Dialer.Timeout, transport.DefaultTimeout) // for the connection, and for the answer
	j.enter(ctx, fault.StageHub, limit+hardwareLimit, "")
}
