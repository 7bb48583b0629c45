/* A liburing to preload in tests, without a kernel: the program that is tested says with
 * fake_kernel who takes what is submitted, and who makes the completions.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <liburing.h>

/* Takes a submission of the ring with this number. */
typedef void (*take_call)(int ring, const struct io_uring_sqe *entry);
/* Makes a completion; returns 0 if there is none. It may only be so if none is wanted. */
typedef int (*give_call)(int ring, struct io_uring_cqe *completion, int is_wanted);

/* What the kernel and the program share. */
struct shared {
	unsigned taken, submitted, submission_mask, submissions;
	unsigned seen, completed, completion_mask, completions;
};

static take_call take;
static give_call give;
static int rings;

void fake_kernel(take_call its_take, give_call its_give)
{
	take = its_take;
	give = its_give;
}

static unsigned power_of_two(unsigned count)
{
	unsigned power = 1;
	while (power < count)
		power *= 2;
	return power;
}

int io_uring_queue_init_params(unsigned entries, struct io_uring *ring,
			       struct io_uring_params *params)
{
	struct shared *shared = calloc(1, sizeof(*shared));
	entries = power_of_two(entries);
	params->cq_entries = power_of_two(params->cq_entries);
	memset(ring, 0, sizeof(*ring));
	ring->sq.ring_ptr = shared;
	ring->sq.sqes = calloc(entries, 2 * sizeof(struct io_uring_sqe));
	ring->cq.cqes = calloc(params->cq_entries, sizeof(struct io_uring_cqe));
	if (!shared || !ring->sq.sqes || !ring->cq.cqes || !(params->flags & IORING_SETUP_SQE128))
		abort();
	ring->flags = params->flags;
	ring->ring_fd = __atomic_add_fetch(&rings, 1, __ATOMIC_RELAXED);
	shared->submissions = ring->sq.ring_entries = entries;
	shared->completions = ring->cq.ring_entries = params->cq_entries;
	shared->submission_mask = ring->sq.ring_mask = entries - 1;
	shared->completion_mask = ring->cq.ring_mask = params->cq_entries - 1;
	ring->sq.khead = &shared->taken;
	ring->sq.ktail = &shared->submitted;
	ring->sq.kring_mask = &shared->submission_mask;
	ring->sq.kring_entries = &shared->submissions;
	ring->cq.khead = &shared->seen;
	ring->cq.ktail = &shared->completed;
	ring->cq.kring_mask = &shared->completion_mask;
	ring->cq.kring_entries = &shared->completions;
	return 0;
}

void io_uring_queue_exit(struct io_uring *ring)
{
	free(ring->sq.ring_ptr);
	free(ring->sq.sqes);
	free(ring->cq.cqes);
}

int io_uring_register_files(struct io_uring *ring, const int *files, unsigned count)
{
	(void)ring;
	(void)files;
	return count == 1 ? 0 : -EINVAL;
}

static int submit(struct io_uring *ring, unsigned wanted)
{
	struct shared *shared = ring->sq.ring_ptr;
	int count = 0;
	for (; shared->taken != ring->sq.sqe_tail; shared->taken++, count++)
		take(ring->ring_fd, &ring->sq.sqes[(shared->taken & ring->sq.ring_mask) << 1]);
	ring->sq.sqe_head = shared->taken;
	while (shared->completed - shared->seen < ring->cq.ring_entries) {
		int is_wanted = shared->completed - shared->seen < wanted;
		unsigned place = shared->completed & ring->cq.ring_mask;
		if (!give(ring->ring_fd, &ring->cq.cqes[place], is_wanted))
			break;
		shared->completed++;
	}
	return count;
}

int io_uring_submit(struct io_uring *ring)
{
	return submit(ring, 0);
}

int io_uring_submit_and_wait(struct io_uring *ring, unsigned wanted)
{
	return submit(ring, wanted);
}

unsigned io_uring_peek_batch_cqe(struct io_uring *ring, struct io_uring_cqe **completions,
				 unsigned count)
{
	struct shared *shared = ring->sq.ring_ptr;
	if (count == 0 || shared->completed == shared->seen)
		return 0;
	completions[0] = &ring->cq.cqes[shared->seen & ring->cq.ring_mask];
	return 1;
}
