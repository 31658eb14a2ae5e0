# A tiny guest for the tests of vmm: drops to ring 3, where every KVM runs code
# natively, and then, on each vCPU (its number is in %rsi, or 0x7000 for vCPU 0):
#   1. vCPU 0 rings READY
#   2. counts in r15, in xmm0 and at COUNTERS + 64*n, until the word at STOP is
#      set
#   3. compares the three counts: doorbell 100+n when they agree, else 200+n
#   4. vCPU 0 echoes mailbox bytes to the console until byte 0, then powers off;
#      byte 1 makes a triple fault, byte 2 prints 0, 1, 2, ... 255, 0, ... without
#      end; the others spin
	.set	BELL, 0x7460
	.set	COUNTERS, 0x300000
	.set	STOP, 0x301000
	.code64
	.text
	.globl	_start
_start:
	cli
	cmpq	$16, %rsi
	jb	1f
	xorl	%esi, %esi
1:	leaq	pml4(%rip), %rax
	movq	%rax, %cr3
	movq	%cr4, %rax
	orq	$0x600, %rax		# OSFXSR, OSXMMEXCPT
	movq	%rax, %cr4
	lgdt	gdt_ptr(%rip)
	leaq	stacks(%rip), %rax
	movq	%rsi, %rbx
	shlq	$12, %rbx
	leaq	4096(%rax, %rbx), %rsp
	movq	%rsp, %rax
	pushq	$0x1b
	pushq	%rax
	pushq	$0x3002			# IOPL 3
	pushq	$0x23
	leaq	user(%rip), %rax
	pushq	%rax
	iretq
user:
	movq	%rsi, %r14
	shlq	$6, %r14
	addq	$COUNTERS, %r14
	xorl	%r15d, %r15d
	pxor	%xmm0, %xmm0
	movl	$1, %eax
	movq	%rax, %xmm1
	testq	%rsi, %rsi
	jnz	2f
	movl	$BELL, %edx
	outl	%eax, %dx
2:	incq	%r15
	paddq	%xmm1, %xmm0
	movq	%r15, (%r14)
	cmpl	$0, STOP
	je	2b
	movq	%xmm0, %rbx
	leal	100(%rsi), %eax
	cmpq	%rbx, %r15
	jne	3f
	cmpq	%r15, (%r14)
	je	4f
3:	leal	200(%rsi), %eax
4:	movl	$BELL, %edx
	outl	%eax, %dx
	testq	%rsi, %rsi
	jnz	7f
5:	movl	$BELL+4, %edx
	inl	%dx, %eax
	cmpl	$-1, %eax
	je	5b
	cmpl	$0, %eax
	je	6f
	cmpl	$1, %eax
	je	8f
	cmpl	$2, %eax
	je	9f
	outb	%al, %dx
	jmp	5b
6:	movl	$BELL, %edx
	movl	$2, %eax
	outl	%eax, %dx
7:	pause
	jmp	7b
8:	ud2				# no IDT: a triple fault
9:	xorl	%eax, %eax
10:	outb	%al, %dx
	incb	%al
	jmp	10b

	.data
	.balign	16
gdt:
	.quad	0
	.quad	0x00af9b000000ffff
	.quad	0x00cf93000000ffff
	.quad	0x00cff3000000ffff	# 0x18 user data
	.quad	0x00affb000000ffff	# 0x20 user code
gdt_end:
gdt_ptr:
	.word	gdt_end - gdt - 1
	.quad	gdt
	.balign	4096
pml4:
	.quad	pdpt + 0x27
	.fill	511, 8, 0
pdpt:
	.quad	pd + 0x27
	.fill	511, 8, 0
pd:
	.set	i, 0
	.rept	512
	.quad	i * 0x200000 + 0xe7
	.set	i, i + 1
	.endr
	.bss
	.balign	4096
stacks:
	.skip	16 * 4096
	.section .note.GNU-stack, "", @progbits
