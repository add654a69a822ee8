package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/dpsd-project/dpsd/config"
	"github.com/dpsd-project/dpsd/daemon"
	"github.com/dpsd-project/dpsd/fleet"
)

func newFleet() *cobra.Command {
	var scenario, configuration, curve, svg string
	f := fleet.New(fleet.Power, 10_000)
	c := &cobra.Command{
		Use:   "fleet [flags]",
		Short: "Simulate a fleet's load on the service, in virtual time",
		Long: `Fleet simulates the load of thousands of gateways on the service, in virtual
time: hours take seconds, and the same flags give the same result. The gateways
run dpsd's own protocol, delays and policies. The service is a model;
docs/simulator.md lists which parts of it are documented, observed or guessed.

  power      the power returns in a whole region
  outage     the same, and the service is unreachable for an hour
  brief      the same, and the service is unreachable until a minute after the
             last gateway is up
  wrong-key  the same, and the group key is wrong for two hours
  moved      after a day and a half, all devices move to another hub; each
             gateway learns this at its interval (24h)

The command prints the time until 50, 90, 99 and 100 % of the gateways are
provisioned, the registration requests per gateway, the peak request rate, and
the number of 429 and 5xx responses. It exits with 1 if a gateway is not
provisioned.`,
		Example: `  dpsd-sim fleet --devices 10000
  dpsd-sim fleet --devices 10000 --boot-delay-max 10m --svg fleet.svg
  dpsd-sim fleet --scenario outage --config /etc/dpsd/dpsd.toml
  dpsd-sim fleet --client sdk --retry-after none --curve sdk.csv`,
		RunE: func(c *cobra.Command, _ []string) error {
			base := fleet.New(fleet.Scenario(scenario), f.Devices)
			f.Since = base.Since
			f.Service.DownUntil, f.Service.KeyRightAt, f.Service.MovedAt = base.Service.DownUntil, base.Service.KeyRightAt, base.Service.MovedAt
			if configuration != "" {
				if err := settings(&f, c, configuration); err != nil {
					return err
				}
			} else if !c.Flags().Changed("interval") {
				f.Interval = base.Interval
			}
			for _, choice := range []struct {
				flag, value string
				of          []string
			}{{"scenario", scenario, scenarios()}, {"on-boot", string(f.OnBoot), policies()}} {
				if !slices.Contains(choice.of, choice.value) {
					return usageError("--%s %q is not one of %s", choice.flag, choice.value, strings.Join(choice.of, ", "))
				}
			}
			if err := f.Check(); err != nil {
				return &exitError{exitUsage, err}
			}
			return rehearse(c, &f, curve, svg)
		},
	}
	flags := c.Flags()
	flags.IntVar(&f.Devices, "devices", f.Devices, "number of gateways")
	flags.StringVar(&scenario, "scenario", string(fleet.Power), "what happens: power, outage, brief,\nwrong-key or moved")
	flags.Uint64Var(&f.Seed, "seed", 0, "`NUMBER` that seeds all random values")
	flags.StringVar((*string)(&f.Client), "client", string(f.Client), "program on the gateways: dpsd, or sdk for\nMicrosoft's SDKs")
	flags.StringVar(&configuration, "config", "", "`FILE` like dpsd.toml, whose [provisioning] and\n[retry] the gateways use; flags override it")
	flags.StringVar((*string)(&f.OnBoot), "on-boot", string(f.OnBoot), "the gateways' on_boot: always, verify or\nif-needed")
	flags.DurationVar(&f.BootDelayMax, "boot-delay-max", 0, "the gateways' boot_delay_max")
	flags.DurationVar(&f.Interval, "interval", 0, "the gateways' interval; 0s for none\n(default 24h for moved)")
	flags.DurationVar(&f.Boot, "boot", f.Boot, "time within which all gateways boot\n")
	flags.IntVar(&f.Service.Quota, "quota", f.Service.Quota, "registrations per minute for each instance;\n0 for no limit")
	flags.IntVar(&f.Service.Instances, "instances", f.Service.Instances, "instances of the service; each gateway has one\n")
	flags.StringVar((*string)(&f.Service.Throttle), "throttle", string(f.Service.Throttle), "how the quota is counted: bucket (as serve\ndoes) or window (each minute of the clock)\n")
	flags.StringVar(&f.Service.RetryAfter, "retry-after", f.Service.RetryAfter, "Retry-After of a 429: `SECONDS`, none, or free\n(until the quota allows one)")
	flags.IntVar(&f.Service.Capacity, "capacity", f.Service.Capacity, "requests per second above which an instance\nanswers 5xx; 0 for no limit")
	flags.Float64Var(&f.Service.Loss, "loss", 0, "`CHANCE` that a request or its reply is lost,\nat least 0 and below 1")
	flags.DurationVar(&f.Limit, "limit", f.Limit, "virtual time after which the simulation ends\n")
	flags.StringVar(&curve, "curve", "", "`FILE` for the results over time, as CSV")
	flags.StringVar(&svg, "svg", "", "`FILE` for a plot of the results, as SVG")
	// Errors occur only for flags that do not exist.
	_ = c.MarkFlagFilename("config", "toml")
	_ = c.MarkFlagFilename("curve", "csv")
	_ = c.MarkFlagFilename("svg", "svg")
	for flag, values := range map[string][]string{
		"scenario": scenarios(), "client": {string(fleet.Dpsd), string(fleet.SDK)}, "on-boot": policies(),
		"throttle": {string(fleet.Bucket), string(fleet.Window)}, "retry-after": {"none", "free", "3", "30"},
	} {
		_ = c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	}
	withoutFiles(c, "devices", "seed", "boot-delay-max", "interval", "boot", "quota", "instances", "capacity", "loss", "limit")
	return c
}

func scenarios() (all []string) {
	for _, s := range fleet.Scenarios() {
		all = append(all, string(s))
	}
	return all
}

func policies() []string {
	return []string{string(daemon.PolicyAlways), string(daemon.PolicyVerify), string(daemon.PolicyIfNeeded)}
}

// settings applies the settings of a dpsd.toml to the gateways, except those set by a flag.
func settings(f *fleet.Fleet, c *cobra.Command, file string) error {
	in, err := os.Open(file)
	if err != nil {
		return err
	}
	defer in.Close()
	cfg, err := config.Parse(file, in)
	if err != nil {
		return err
	}
	f.Retry = cfg.Retry
	if !c.Flags().Changed("on-boot") {
		f.OnBoot = daemon.Policy(cfg.Provisioning.OnBoot)
	}
	if !c.Flags().Changed("boot-delay-max") {
		f.BootDelayMax = cfg.Provisioning.BootDelayMax
	}
	if !c.Flags().Changed("interval") {
		f.Interval = cfg.Provisioning.Interval
	}
	return nil
}

func rehearse(c *cobra.Command, f *fleet.Fleet, curve, svg string) error {
	// A million gateways need half a gigabyte of live memory; this makes collections rarer.
	debug.SetGCPercent(300)
	r, err := f.Run()
	if err != nil {
		return err
	}
	if err := r.Write(c.OutOrStdout()); err != nil {
		return err
	}
	for _, picture := range []struct {
		file  string
		write func(io.Writer) error
	}{{curve, r.WriteCurve}, {svg, r.WriteSVG}} {
		if picture.file == "" {
			continue
		}
		out, err := os.Create(picture.file)
		if err != nil {
			return err
		}
		if err := errors.Join(picture.write(out), out.Close()); err != nil {
			return err
		}
	}
	if left := f.Devices - len(r.At); left > 0 {
		return fmt.Errorf("%d of %d gateways were not provisioned within %s", left, f.Devices, f.Limit)
	}
	return nil
}
