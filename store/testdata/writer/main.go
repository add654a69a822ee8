// Command writer saves records in the directory of its first argument until it is killed: a
// device gw-N for each N, starting with its second argument. It prints the generation of
// each record that Save reported as saved. It is a separate program because the race
// detector makes each start slow.
package main

import (
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/dpsd-project/dpsd/store"
)

func main() {
	if err := write(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func write(directory, from string) error {
	n, err := strconv.Atoi(from)
	if err != nil {
		return err
	}
	s, err := store.Open(store.Options{Directory: directory}, time.Now())
	if err != nil {
		return err
	}
	for ; ; n++ {
		rec := store.Record{
			AssignedHub: "contoso-eu.azure-devices.net", DeviceID: fmt.Sprintf("gw-%04d", n), RegistrationID: "gw-0001",
			IDScope: "0ne00000000", Endpoint: "global.azure-devices-provisioning.net",
		}
		if _, err := s.Save(rec, time.Now()); err != nil {
			return err
		}
		rec, _ = s.Current()
		fmt.Println(rec.Generation)
	}
}
