package config

type KindDoc struct {
	Name, Summary string
	Values        []any
	Example       string
}

func Schema(a, b []KindDoc) ([]byte, error)    { return nil, nil }
func Reference(a, b []KindDoc) ([]byte, error) { return nil, nil }
