package jetstream

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"
	"github.com/synadia-io/orbit.go/natsext"
	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/journal"
)

// Format of the stream. This version reads no other format.
const (
	formatKey = "postwire.format"
	format    = 5
)

// idKey holds the ID of the journal. The process that creates the stream chooses the ID.
const idKey = "postwire.id"

// The oldest server version with atomic batches and a TTL per message.
const needMajor, needMinor = 2, 12

// refusal is an error that only an operator can resolve.
type refusal struct{ what string }

func (r *refusal) Error() string { return r.what }

// reserve is the size of the stream beyond max_bytes for writes that are allowed while
// appends fail: dead letters and values.
func reserve(maxBytes uint64) uint64 { return max(maxBytes/16, 16<<20) }

// config returns the configuration of the stream. The server removes no message by age or
// number, because only this engine knows the cursors of all sinks.
func (j *Journal) config() jetstream.StreamConfig {
	limit := int64(-1)
	if j.opts.MaxBytes > 0 {
		limit = int64(j.opts.MaxBytes + reserve(j.opts.MaxBytes))
	}
	return jetstream.StreamConfig{
		Name: j.opts.Stream, Subjects: []string{j.names.all()},
		Description: "Journal of Postwire: events, their identity keys, dead letters. It is written by Postwire alone.",
		Storage:     jetstream.FileStorage, Replicas: j.opts.Replicas,
		Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardNew, MaxBytes: limit,
		MaxMsgs: -1, MaxMsgsPerSubject: -1, MaxMsgSize: -1, MaxConsumers: -1,
		AllowDirect: true, AllowRollup: true, AllowMsgTTL: true, AllowAtomicPublish: true,
		Metadata: map[string]string{formatKey: strconv.Itoa(format)},
	}
}

// configureStream creates or checks the stream.
func (j *Journal) configureStream(ctx context.Context) error {
	if err := checkVersion(j.conn.ConnectedServerVersion()); err != nil {
		return err
	}
	want := j.config()
	s, err := j.js.Stream(ctx, j.opts.Stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		created := want
		created.Metadata = maps.Clone(want.Metadata)
		created.Metadata[idKey] = uuid.NewString()
		if j.opts.filling { // no relay uses the stream between its creation and the first page
			created.Metadata[unfinishedKey] = "1"
		}
		s, err = j.js.CreateStream(ctx, created)
		if err == nil {
			j.log.Info("the stream was created", zap.String("stream", want.Name), zap.Int("replicas", want.Replicas))
		}
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // another process has created the stream, with its own ID
			s, err = j.js.Stream(ctx, j.opts.Stream)
		}
	}
	if err != nil {
		return explained(fmt.Errorf("stream %s: %w", want.Name, err))
	}
	have := s.CachedInfo().Config
	if err := checkFormat(have); err != nil {
		return err
	}
	if err := j.checkFinished(have); err != nil {
		return err
	}
	j.mu.Lock()
	j.id = have.Metadata[idKey]
	j.mu.Unlock()
	wrong := differences(have, want)
	if len(wrong) == 0 {
		return nil
	}
	if !j.opts.Update {
		return &refusal{fmt.Sprintf("the stream %s is not as the configuration says: %s. Set journal.jetstream.update: true to change the stream, or the configuration back, or name another stream",
			want.Name, strings.Join(wrong, "; "))}
	}
	maps.Copy(want.Metadata, ownMetadata(have.Metadata))
	if s, err = j.js.UpdateStream(ctx, want); err != nil {
		return explained(fmt.Errorf("changing the stream %s (%s): %w", want.Name, strings.Join(wrong, "; "), err))
	}
	if wrong := differences(s.CachedInfo().Config, want); len(wrong) > 0 {
		return &refusal{fmt.Sprintf("the stream %s cannot be changed: %s. Name another stream", want.Name, strings.Join(wrong, "; "))}
	}
	j.log.Warn("the stream was changed, as journal.jetstream.update says", zap.String("stream", want.Name), zap.Strings("differences", wrong))
	return nil
}

// checkVersion rejects a server without the needed features.
func checkVersion(version string) error {
	var major, minor int
	if _, err := fmt.Sscanf(strings.TrimPrefix(version, "v"), "%d.%d", &major, &minor); err != nil {
		return &refusal{fmt.Sprintf("the NATS server says that its version is %q: %d.%d or newer is needed", version, needMajor, needMinor)}
	}
	if major < needMajor || major == needMajor && minor < needMinor {
		return &refusal{fmt.Sprintf("the NATS server is version %s: %d.%d or newer is needed, for atomic batches; upgrade the servers", version, needMajor, needMinor)}
	}
	return nil
}

func checkFormat(have jetstream.StreamConfig) error {
	text, ok := have.Metadata[formatKey]
	if !ok {
		return &refusal{fmt.Sprintf("the stream %s was not made by Postwire: name another one with journal.jetstream.stream", have.Name)}
	}
	if n, err := strconv.Atoi(text); err != nil || n != format {
		return &refusal{fmt.Sprintf("the stream %s has format %s of another version of postwire, this version reads format %d: install that version again, or name another stream with journal.jetstream.stream", have.Name, text, format)}
	}
	if have.Metadata[idKey] == "" {
		return &refusal{fmt.Sprintf("the stream %s has lost its metadata %s, the ID of the journal: set it to a random text, or name another stream with journal.jetstream.stream", have.Name, idKey)}
	}
	return nil
}

// differences describes how the configuration of a stream differs from the expected one.
func differences(have, want jetstream.StreamConfig) []string {
	var wrong []string
	differ := func(what string, has, needs any) {
		if has != needs {
			wrong = append(wrong, fmt.Sprintf("%s is %v, and must be %v", what, has, needs))
		}
	}
	if !slices.Equal(have.Subjects, want.Subjects) {
		differ("subjects", strings.Join(have.Subjects, " "), strings.Join(want.Subjects, " "))
	}
	differ("storage", have.Storage, want.Storage)
	differ("num_replicas", have.Replicas, want.Replicas)
	differ("retention", have.Retention, want.Retention)
	differ("discard", have.Discard, want.Discard)
	if have.Metadata[raisedKey] != strconv.FormatInt(want.MaxBytes, 10) {
		differ("max_bytes", have.MaxBytes, want.MaxBytes)
	}
	differ("max_msgs", have.MaxMsgs, want.MaxMsgs)
	differ("max_msgs_per_subject", have.MaxMsgsPerSubject, want.MaxMsgsPerSubject)
	differ("max_msg_size", have.MaxMsgSize, want.MaxMsgSize)
	differ("max_consumers", have.MaxConsumers, want.MaxConsumers)
	differ("max_age", have.MaxAge, want.MaxAge)
	differ("allow_direct", have.AllowDirect, want.AllowDirect)
	differ("allow_rollup_hdrs", have.AllowRollup, want.AllowRollup)
	differ("allow_msg_ttl", have.AllowMsgTTL, want.AllowMsgTTL)
	differ("allow_atomic", have.AllowAtomicPublish, want.AllowAtomicPublish)
	differ("deny_purge", have.DenyPurge, want.DenyPurge)
	differ("no_ack", have.NoAck, want.NoAck)
	differ("persist_mode", have.PersistMode, want.PersistMode)
	return wrong
}

// raisedKey holds the max_bytes of the stream before makeRoom.
const raisedKey = "postwire.raised"

// makeRoom raises the max_bytes of a full stream for the position of a cursor: without new
// positions the journal could never remove an event. Appends fail long before.
func (j *Journal) makeRoom(ctx context.Context) error {
	const room = 64 << 10
	s, err := j.js.Stream(ctx, j.opts.Stream)
	if err != nil {
		return err
	}
	info := s.CachedInfo()
	config := info.Config
	size := int64(info.State.Bytes)
	if config.MaxBytes < 0 || config.MaxBytes-size >= room {
		return nil
	}
	config.MaxBytes = size + 2*room
	config.Metadata = ownMetadata(config.Metadata)
	config.Metadata[raisedKey] = strconv.FormatInt(j.config().MaxBytes, 10)
	_, err = j.js.UpdateStream(ctx, config)
	return err
}

// ownMetadata returns the metadata without the entries of the server.
func ownMetadata(all map[string]string) map[string]string {
	own := maps.Clone(all)
	maps.DeleteFunc(own, func(k, _ string) bool { return strings.HasPrefix(k, "_") })
	return own
}

// Error codes of the server that do not go away by waiting.
const (
	codeInvalidStream        jetstream.ErrorCode = 10052
	codeSubjectOverlap       jetstream.ErrorCode = 10065
	codeReplicasNotSupported jetstream.ErrorCode = 10074
)

// explained turns an error of the cluster into a refusal if waiting cannot help.
func explained(err error) error {
	var api *jetstream.APIError
	if !errors.As(err, &api) {
		if errors.Is(err, nats.ErrNoResponders) {
			return fmt.Errorf("%w: JetStream is not there, or has no leader", err)
		}
		return err
	}
	switch api.ErrorCode {
	case jetstream.JSErrCodeJetStreamNotEnabledForAccount:
		return &refusal{fmt.Sprintf("%v: JetStream is off for this account; turn it on in the servers' configuration", err)}
	case codeReplicasNotSupported:
		return &refusal{fmt.Sprintf("%v: the server stands alone; set journal.jetstream.replicas: 1, or make the servers a cluster", err)}
	case codeInvalidStream, codeSubjectOverlap, codeInsufficientStorage:
		return &refusal{err.Error()}
	}
	return err // a new cluster has no peers for a while
}

// readState reads the state of the stream.
func (j *Journal) readState(ctx context.Context) (state, error) {
	s, err := j.js.Stream(ctx, j.opts.Stream)
	if err != nil {
		return state{}, err
	}
	info, err := s.Info(ctx, jetstream.WithSubjectFilter(j.names.event()))
	if err != nil {
		return state{}, err
	}
	if j.silentMajority(info.Cluster) && !j.hasQuorum(ctx) {
		return state{}, errAlone
	}
	if id := info.Config.Metadata[idKey]; id != cmp.Or(j.ID(), id) {
		return state{}, errRemade
	}
	st := state{bytes: info.State.Bytes, events: info.State.Subjects[j.names.event()], ahead: info.TimeStamp.Sub(j.opts.Clock())}
	if st.events == 0 {
		st.last = seqOf(info.State.LastSeq)
		st.oldest = st.last + 1
		return st, nil
	}
	first, err := j.leaderGet(ctx, getRequest{Seq: 1, NextFor: j.names.event()})
	if err != nil {
		return state{}, err
	}
	last, err := j.leaderGet(ctx, getRequest{LastFor: j.names.event()})
	if err != nil {
		return state{}, err
	}
	st.oldest, st.last = seqOf(first.seq), seqOf(last.seq)
	return st, nil
}

// errRemade is returned if the stream belongs to another journal than the one that this
// process has opened.
var errRemade = errors.New("the stream was deleted and made again; the events of the deleted stream are lost")

// errAlone is returned if the leader of the stream hears from too few servers to store
// anything.
var errAlone = errors.New("the stream's leader is cut off from the other servers")

const (
	// defaultReplicaTimeout is how long a replica may be silent before the quorum is in doubt.
	// On an idle cluster up to two seconds pass between two answers of a replica.
	defaultReplicaTimeout = 1500 * time.Millisecond
	// quorumTimeout is how long the cluster may take to store the message that proves a quorum.
	quorumTimeout = 500 * time.Millisecond
)

// hasQuorum reports whether the leader of the stream can store a message.
func (j *Journal) hasQuorum(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, quorumTimeout)
	defer cancel()
	m := nats.NewMsg(j.names.quorum(j.opts.Name))
	m.Header.Set(jetstream.MsgRollup, jetstream.MsgRollupSubject)
	m.Header.Set(jetstream.MsgTTLHeader, "60s")
	_, err := j.store(ctx, []*nats.Msg{m})
	return err == nil
}

// silentMajority reports whether the leader has not heard from half of the servers for a while.
func (j *Journal) silentMajority(c *jetstream.ClusterInfo) bool {
	if c == nil || len(c.Replicas) == 0 {
		return false
	}
	heard := 1 // the leader itself
	for _, r := range c.Replicas {
		if r.Active < j.opts.replicaTimeout && !r.Offline {
			heard++
		}
	}
	return heard*2 <= len(c.Replicas)+1
}

// message is a message of the stream.
type message struct {
	subject string
	seq     uint64
	header  nats.Header
	data    []byte
}

type getRequest struct {
	Seq     uint64 `json:"seq,omitempty"`
	LastFor string `json:"last_by_subj,omitempty"`
	NextFor string `json:"next_by_subj,omitempty"`
}

// leaderGet reads one message from the leader of the stream, which has every acknowledged
// message; other servers may lag behind. Its error may wrap journal.ErrNotFound.
func (j *Journal) leaderGet(ctx context.Context, get getRequest) (message, error) {
	body, err := json.Marshal(get)
	if err != nil {
		return message{}, err
	}
	ctx, cancel := j.ask(ctx)
	defer cancel()
	m, err := j.conn.RequestWithContext(ctx, "$JS.API.STREAM.MSG.GET."+j.opts.Stream, body)
	if err != nil {
		return message{}, err
	}
	var answer struct {
		Error   *jetstream.APIError `json:"error"`
		Message *struct {
			Subject string `json:"subject"`
			Seq     uint64 `json:"seq"`
			Header  string `json:"hdrs"`
			Data    []byte `json:"data"`
		} `json:"message"`
	}
	if err := json.Unmarshal(m.Data, &answer); err != nil {
		return message{}, fmt.Errorf("reading the cluster's answer: %w", err)
	}
	switch {
	case answer.Error != nil && answer.Error.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return message{}, journal.ErrNotFound
	case answer.Error != nil:
		return message{}, answer.Error
	case answer.Message == nil:
		return message{}, errors.New("the cluster's answer holds no message")
	}
	found := message{subject: answer.Message.Subject, seq: answer.Message.Seq, data: answer.Message.Data}
	if answer.Message.Header != "" {
		raw, err := base64.StdEncoding.DecodeString(answer.Message.Header)
		if err != nil {
			return message{}, fmt.Errorf("reading the cluster's answer: %w", err)
		}
		if found.header, err = nats.DecodeHeadersMsg(raw); err != nil {
			return message{}, fmt.Errorf("reading the cluster's answer: %w", err)
		}
	}
	return found, nil
}

// lastOf reads the last message of each subject. A server that lags behind may answer.
func (j *Journal) lastOf(ctx context.Context, subjects []string) ([]message, error) {
	const most = 512 // the server allows 1,024 answers
	var found []message
	ctx, cancel := j.ask(ctx)
	defer cancel()
	for some := range slices.Chunk(subjects, most) {
		messages, err := collect(jetstreamext.GetLastMsgsFor(ctx, j.js, j.opts.Stream, some))
		if err != nil {
			return nil, err
		}
		found = append(found, messages...)
	}
	return found, nil
}

// numPendingHeader is the number of messages that follow an answer to a direct request.
const numPendingHeader = "Nats-Num-Pending"

// lastWithin is lastOf for a few subjects with large messages. It stops after the message
// that reaches the given number of bytes, and reports whether the answer is complete.
func (j *Journal) lastWithin(ctx context.Context, subjects []string, bytes int) (found []message, all bool, err error) {
	body, err := json.Marshal(struct {
		LastFor  []string `json:"multi_last"`
		MaxBytes int      `json:"max_bytes"`
	}{subjects, bytes})
	if err != nil {
		return nil, false, err
	}
	ctx, cancel := j.ask(ctx)
	defer cancel()
	ended := false
	answers, err := natsext.RequestMany(ctx, j.conn, "$JS.API.DIRECT.GET."+j.opts.Stream, body, natsext.RequestManySentinel(func(m *nats.Msg) bool {
		ended = len(m.Data) == 0 && m.Header.Get("Status") == "204"
		return ended
	}))
	if err != nil {
		return nil, false, err
	}
	pending := ""
	for m, err := range answers {
		if err != nil {
			return nil, false, err
		}
		switch status := m.Header.Get("Status"); {
		case status == "404":
			return nil, true, nil
		case status != "":
			return nil, false, fmt.Errorf("the cluster answers %s %s", status, m.Header.Get("Description"))
		}
		seq, err := strconv.ParseUint(m.Header.Get(jetstream.SequenceHeader), 10, 64)
		if err != nil {
			return nil, false, fmt.Errorf("reading the cluster's answer: %w", err)
		}
		found = append(found, message{m.Header.Get(jetstream.SubjectHeader), seq, m.Header, m.Data})
		pending = m.Header.Get(numPendingHeader)
	}
	if !ended {
		return nil, false, cmp.Or(ctx.Err(), errors.New("the cluster's answer has no end"))
	}
	return found, pending == "" || pending == "0", nil
}

// page reads messages of a subject from a message sequence on. A server that lags behind may
// answer.
func (j *Journal) page(ctx context.Context, subject string, from uint64, limit int) ([]message, error) {
	const maxBytes = 8 << 20
	ctx, cancel := j.ask(ctx)
	defer cancel()
	return collect(jetstreamext.GetBatch(ctx, j.js, j.opts.Stream, limit, jetstreamext.GetBatchSeq(max(1, from)),
		jetstreamext.GetBatchSubject(subject), jetstreamext.GetBatchMaxBytes(maxBytes)))
}

// collect receives the answers to a request for several messages.
func collect(answers func(func(*jetstream.RawStreamMsg, error) bool), err error) ([]message, error) {
	if err != nil {
		return nil, err
	}
	var found []message
	for m, err := range answers {
		if errors.Is(err, jetstreamext.ErrNoMessages) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		found = append(found, message{m.Subject, m.Sequence, m.Header, m.Data})
	}
	return found, nil
}

// retry calls do until do succeeds, do returns ErrNotFound, or ctx is done. Retry waits
// while the cluster does not answer.
func (j *Journal) retry(ctx context.Context, do func(context.Context) error) error {
	wait := newWait()
	for {
		if err := j.waitReady(ctx); err != nil {
			return err
		}
		err := do(ctx)
		switch {
		case err == nil || errors.Is(err, journal.ErrNotFound) || errors.Is(err, errConflict) || errors.Is(err, journal.ErrFull) || errors.Is(err, errBroken):
			return err
		case j.life.Err() != nil:
			return journal.ErrClosed
		case ctx.Err() != nil:
			return ctx.Err()
		}
		j.log.Debug("asking the cluster again", zap.Error(err))
		select {
		case <-time.After(wait.NextBackOff()):
		case <-ctx.Done():
			return ctx.Err()
		case <-j.life.Done():
			return journal.ErrClosed
		}
	}
}
