package main

import (
	"maps"
	"sync"

	"github.com/opencontainers/go-digest"
)

// memoryLabels keeps labels for the local store, which has none of its own and refuses updates without.
type memoryLabels struct {
	mutex sync.Mutex
	known map[digest.Digest]map[string]string
}

func (m *memoryLabels) Get(blob digest.Digest) (map[string]string, error) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	return maps.Clone(m.known[blob]), nil
}

func (m *memoryLabels) Set(blob digest.Digest, labels map[string]string) error {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	m.change(blob, nil, labels)
	return nil
}

func (m *memoryLabels) Update(blob digest.Digest, labels map[string]string) (map[string]string, error) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	return m.change(blob, m.known[blob], labels), nil
}

func (m *memoryLabels) change(blob digest.Digest, from, by map[string]string) map[string]string {
	next := changed(from, by)
	if m.known == nil {
		m.known = map[digest.Digest]map[string]string{}
	}
	m.known[blob] = next
	return maps.Clone(next)
}

// changed is `from` with the labels of `by`, where an empty value takes one away.
func changed(from, by map[string]string) map[string]string {
	next := map[string]string{}
	maps.Copy(next, from)
	maps.Copy(next, by)
	maps.DeleteFunc(next, func(_, value string) bool { return value == "" })
	return next
}
