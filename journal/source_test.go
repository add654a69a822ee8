package journal

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/dpsd-project/dpsd/event"
)

// call is a place in the program that logs an event.
type call struct {
	place  string
	event  string
	level  string   // zap's level, if the call specifies it
	fields []string // names of the fields in the call
}

// calls finds every place in the program that logs an event.
func calls(t *testing.T) (found []call) {
	t.Helper()
	files := token.NewFileSet()
	parse := func(path string) *ast.File {
		f, err := parser.ParseFile(files, path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	names := map[string]string{} // event names by constant
	ast.Inspect(parse("../event/event.go"), func(n ast.Node) bool {
		if spec, is := n.(*ast.ValueSpec); is && len(spec.Values) == 1 {
			if text, is := spec.Values[0].(*ast.BasicLit); is && text.Kind == token.STRING {
				names[spec.Names[0].Name], _ = strconv.Unquote(text.Value)
			}
		}
		return true
	})
	for _, room := range []string{"../daemon", "../cmd/dpsd", "."} {
		paths, err := filepath.Glob(room + "/*.go")
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			if strings.HasSuffix(path, "_test.go") {
				continue
			}
			for _, d := range parse(path).Decls {
				function, is := d.(*ast.FuncDecl)
				if !is {
					continue
				}
				ast.Inspect(function, func(n ast.Node) bool {
					c := call{place: files.Position(function.Pos()).String()}
					var name ast.Expr
					where := n
					switch n := n.(type) {
					case *ast.CallExpr:
						method, is := n.Fun.(*ast.SelectorExpr)
						if !is || len(n.Args) == 0 {
							return true
						}
						switch method.Sel.Name {
						case "log":
						case "Debug", "Info", "Warn", "Error", "DPanic", "Panic", "Fatal":
							if of, is := method.X.(*ast.Ident); is && of.Name == "zap" {
								return true // a field
							}
							c.level = strings.ToLower(method.Sel.Name)
						default:
							return true
						}
						name = n.Args[0]
						if n.Ellipsis.IsValid() {
							where = function // the function builds the fields before the call
						}
					case *ast.KeyValueExpr:
						if key, is := n.Key.(*ast.Ident); !is || key.Name != "Message" {
							return true
						}
						name, where = n.Value, function
					default:
						return true
					}
					c.place = files.Position(n.Pos()).String()
					constant, is := name.(*ast.SelectorExpr)
					if !is || names[constant.Sel.Name] == "" {
						t.Errorf("%s: the message is not an event of the catalogue but a %T", c.place, name)
						return true
					}
					c.event, c.fields = names[constant.Sel.Name], fieldNames(where)
					found = append(found, c)
					return true
				})
			}
		}
	}
	return found
}

// fieldNames returns the names of the fields that are created within n.
func fieldNames(n ast.Node) (names []string) {
	ast.Inspect(n, func(n ast.Node) bool {
		made, is := n.(*ast.CallExpr)
		if !is || len(made.Args) == 0 {
			return true
		}
		method, is := made.Fun.(*ast.SelectorExpr)
		if !is {
			return true
		}
		if of, is := method.X.(*ast.Ident); !is || of.Name != "zap" {
			return true
		}
		if method.Sel.Name == "Error" {
			names = append(names, "error")
		} else if text, is := made.Args[0].(*ast.BasicLit); is {
			name, _ := strconv.Unquote(text.Value)
			names = append(names, name)
		}
		return true
	})
	return names
}

// fieldsOf returns the fields of each event, from all places that log it.
func fieldsOf(t *testing.T) map[string][]string {
	fields := map[string][]string{}
	for _, c := range calls(t) {
		fields[c.event] = append(fields[c.event], c.fields...)
	}
	for name := range fields {
		slices.Sort(fields[name])
		fields[name] = slices.Compact(fields[name])
	}
	return fields
}

func TestTheProgramLogsExactlyTheEventsOfTheCatalogue(t *testing.T) {
	zapLevels := map[event.Priority]string{event.Error: "error", event.Warning: "warn", event.Notice: "info", event.Info: "info", event.Debug: "debug"}
	logged := map[string]bool{}
	for _, c := range calls(t) {
		logged[c.event] = true
		e, _ := event.Describe(c.event)
		if c.level != "" && c.level != zapLevels[e.Priority] {
			t.Errorf("%s: %s is logged at level %s, its priority is %s", c.place, c.event, c.level, e.Priority)
		}
	}
	for _, e := range event.Catalogue() {
		if !logged[e.Name] {
			t.Errorf("nothing logs %s", e.Name)
		}
	}
}

// If a sentence contains a field that no call sets, the message would always contain a
// dash.
func TestEveryFieldOfASentenceIsLogged(t *testing.T) {
	fields := fieldsOf(t)
	for _, e := range event.Catalogue() {
		wanted := slices.Clone(e.Same)
		for rest := e.Sentence; strings.Contains(rest, "{"); {
			var name string
			_, rest, _ = strings.Cut(rest, "{")
			name, rest, _ = strings.Cut(rest, "}")
			wanted = append(wanted, name)
		}
		for _, name := range wanted {
			if !slices.Contains(fields[e.Name], name) {
				t.Errorf("%s needs %s; its calls set %v", e.Name, name, fields[e.Name])
			}
		}
	}
}

func TestEveryFieldHasADistinctName(t *testing.T) {
	names := map[string]string{"DPSD_EVENT": "the name of the event", "DPSD_TIME": "when it happened"}
	for _, fields := range fieldsOf(t) {
		for _, f := range append(fields, "repeated", "since") {
			if of := names[Field(f)]; of != "" && of != f {
				t.Errorf("%s is the name of %s and of %s", Field(f), f, of)
			}
			names[Field(f)] = f
		}
	}
}
