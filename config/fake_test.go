package config_test

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/postwire/postwire/config"
)

// settings are the keys that the fake kinds share.
type settings struct {
	Filter string `yaml:"filter" doc:"Which events go there | all if empty." example:"platform == \"instagram\""`
	Start  string `yaml:"start" enum:"latest,earliest" doc:"Where a new one begins."`
	Retry  retry  `yaml:"retry" doc:"How a failure is tried again."`
}

type retry struct {
	Initial time.Duration `yaml:"initial" doc:"First wait."`
	Max     time.Duration `yaml:"max" doc:"Longest wait."`
}

// base is inlined into post.
type base struct {
	Subject string `yaml:"subject" required:"true" doc:"Where to." example:"events.{platform}"`
}

// post is what a fake kind, a post office, reads from its block. It has a
// field of each sort.
type post struct {
	Base     base              `yaml:",inline"`
	Servers  []string          `yaml:"servers" list:"commas" doc:"Where it listens." example:"[localhost:1]"`
	Stamps   int               `yaml:"stamps" doc:"How many."`
	Weight   uint8             `yaml:"weight" doc:"How heavy."`
	Speed    float64           `yaml:"speed" doc:"How fast."`
	Express  bool              `yaml:"express" doc:"Whether in a hurry."`
	Limit    config.Size       `yaml:"limit" doc:"Largest parcel."`
	Token    config.Secret     `yaml:"token" doc:"What opens the door."`
	Keys     []config.Secret   `yaml:"keys" doc:"What opens other doors."`
	Headers  map[string]string `yaml:"headers" doc:"What is written outside."`
	Zone     *time.Location    `yaml:"zone" doc:"Where it is."`
	Networks []netip.Prefix    `yaml:"networks" doc:"Who may come."`
	Home     netip.Addr        `yaml:"home" doc:"Where it lives."`
	Clerks   []clerk           `yaml:"clerks" doc:"Who works there."`
	Safe     *clerk            `yaml:"safe" doc:"Who has the keys."`
	Auth     door              `yaml:"auth" doc:"Who may pass: none, or names."`
	TLS      config.TLS        `yaml:"tls" doc:"Encryption."`
	Cities   []string          `yaml:"cities" enum:"rome,paris" doc:"Branches."`
	Internal int               `yaml:"-"`
}

type clerk struct {
	Name  string `yaml:"name" required:"true" doc:"Of the clerk."`
	Hours int    `yaml:"hours" doc:"A week."`
}

// door is the word none, or a mapping.
type door struct {
	None bool          `yaml:"-"`
	Key  config.Secret `yaml:"key" doc:"Fits the lock."`
	Wait time.Duration `yaml:"wait" doc:"Before it opens."`
}

var _ config.Value = (*door)(nil)

func (d *door) UnmarshalConfig(n config.Node) error {
	text, ok := n.Text()
	switch {
	case !ok:
		return n.Decode(d)
	case text == "none":
		d.None = true
		return nil
	case text == "broken":
		return fmt.Errorf("cannot open %s", text)
	}
	return n.Want("the word none or a mapping", "write none")
}

func (d *door) MarshalConfig() any {
	if d.None {
		return "none"
	}
	return nil
}

func (d *door) DescribeConfig() config.Syntax {
	return config.Syntax{Type: "none or a mapping", Words: []string{"none"}, Fields: true}
}

func (s settings) Validate() error {
	var p config.Invalids
	if s.Retry.Max < s.Retry.Initial {
		p.Add("retry.max", fmt.Sprintf("%v is shorter than retry.initial, %v", s.Retry.Max, s.Retry.Initial), "use a longer one")
	}
	return p.Err()
}

func (p post) Validate() error {
	var all config.Invalids
	for i, s := range p.Servers {
		if _, err := netip.ParseAddrPort(s); err != nil {
			all.Add(fmt.Sprintf("servers[%d]", i), fmt.Sprintf("%q is not an address", s), "for example 127.0.0.1:1")
		}
	}
	p.TLS.Check("tls", &all)
	var err error
	if p.Weight > 200 {
		err = errors.New("too heavy for the scales")
	}
	return errors.Join(all.Err(), err)
}

func defaultSettings() settings {
	return settings{Start: "latest", Retry: retry{Initial: time.Second, Max: time.Minute}}
}

func defaultPost() post {
	return post{Stamps: 3, Speed: 1.5, Limit: 64 << 10, Zone: time.UTC, Servers: []string{"127.0.0.1:1"}}
}

func fakeKinds() []config.KindDoc {
	p := defaultPost()
	return []config.KindDoc{
		{
			Name: "post", Summary: "A post office.", Values: []any{defaultSettings(), &p},
			Example: "name: corner\ntype: post\nsubject: events.{platform}\n",
		},
		{Name: "pigeon", Summary: "A pigeon.", Values: []any{defaultSettings()}},
	}
}

// check reads a document and its blocks, as pkg/app does.
func check(file, text string, env map[string]string) (*config.Config, []post, error) {
	c, err := config.Parse(file, []byte(text), func(name string) (string, bool) {
		value, ok := env[name]
		return value, ok
	})
	if c == nil {
		return nil, nil, err
	}
	errs := []error{err}
	var posts []post
	for _, b := range append(c.Sources, c.Sinks...) {
		if b.Type != "post" {
			errs = append(errs, b.UnknownType("sink", []string{"post", "pigeon"}))
			continue
		}
		s, p := defaultSettings(), defaultPost()
		err := b.Decode(&s, &p)
		if err == nil {
			err = b.Check(s.Validate(), p.Validate())
		}
		errs, posts = append(errs, err), append(posts, p)
	}
	return c, posts, config.Merge(errs...)
}
