package clients

import (
	"encoding/base64"
	"encoding/json"
	"math/rand/v2"
	"os/exec"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/hub"
	"github.com/dpsd-project/dpsd/sas"
)

// tokens is a program that prints the tokens of the SDK for a list of cases.
const tokens = `
const { SharedAccessSignature, encodeUriComponentStrict } = require("azure-iot-common")
const cases = JSON.parse(process.argv[1])
console.log(JSON.stringify(cases.map(c => SharedAccessSignature.create(encodeUriComponentStrict(c.resource), null, c.key, c.expiry).toString())))
`

func TestTokensEqualThoseOfTheInstalledSDKForNode(t *testing.T) {
	want(t)
	// The characters that a device ID and a module ID can consist of (Azure page "Identity
	// registry").
	const characters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.%_*?!(),:=@$'#+ ~ü"
	random := rand.New(rand.NewPCG(1, 2))
	id := func() string {
		runes := make([]rune, 1+random.IntN(40))
		for i := range runes {
			all := []rune(characters)
			runes[i] = all[random.IntN(len(all))]
		}
		return string(runes)
	}
	type sdkCase struct {
		Resource string `json:"resource"`
		Key      string `json:"key"`
		Expiry   int64  `json:"expiry"`
	}
	var cases []sdkCase
	var ours []string
	for range 500 {
		identity := hub.Identity{Host: "hub.azure-devices.net", DeviceID: id()}
		if random.IntN(2) == 0 {
			identity.ModuleID = id()
		}
		resource := identity.Resource(random.IntN(2) == 0)
		key := []byte(id() + "0123456789abcdef")
		expiry := time.Unix(random.Int64N(1<<33)+1, 0)
		cases = append(cases, sdkCase{resource, base64.StdEncoding.EncodeToString(key), expiry.Unix()})
		ours = append(ours, sas.Token(resource, sas.MAC(key, sas.Statement(resource, expiry)), expiry, ""))
	}
	argument, err := json.Marshal(cases)
	if err != nil {
		t.Fatal(err)
	}
	command := exec.CommandContext(t.Context(), "node", "-e", tokens, string(argument))
	command.Dir = node(t)
	out, err := command.Output()
	if err != nil {
		t.Fatal(err)
	}
	var theirs []string
	if err := json.Unmarshal(out, &theirs); err != nil || len(theirs) != len(ours) {
		t.Fatalf("%v: %d tokens", err, len(theirs))
	}
	for i := range ours {
		if ours[i] != theirs[i] {
			t.Errorf("%q:\ndpsd %s\nSDK  %s", cases[i].Resource, ours[i], theirs[i])
		}
	}
}
